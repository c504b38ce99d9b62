"""The linked list of ops, and names that are taken, each by itself."""

from __future__ import annotations

from memoptc.ir.linked import Link, LinkedList
from memoptc.ir.names import ModelNames, ValueNames


def filled(text: str) -> tuple[LinkedList[str], dict[str, Link[str]]]:
    letters: LinkedList[str] = LinkedList()
    return letters, {letter: letters.insert(letter, letters.ends.prev) for letter in text}


def test_a_walk_goes_on_behind_an_item_that_is_removed() -> None:
    letters, links = filled("abcd")
    seen = []
    for letter in letters:
        seen.append(letter)
        if letter == "b":
            letters.remove(links["b"])
            letters.remove(links["c"])
            letters.insert("e", links["d"])
    assert seen == ["a", "b", "d", "e"]
    assert (list(letters), len(letters), letters.first, letters.last) == (["a", "d", "e"], 3, "a", "e")


def test_rearranged_items_keep_their_number() -> None:
    letters, _ = filled("abc")
    assert [link.item for link in letters.rearrange("cab")] == ["c", "a", "b"]
    assert (list(letters), len(letters)) == (["c", "a", "b"], 3)
    assert list(LinkedList[str]()) == []


def test_fresh_names_never_return() -> None:
    names = ModelNames()
    names.add(["ignored: present is asked when the first fresh name is"])
    assert names.fresh("x", lambda: ["x", "x_1"]) == "x_2"
    names.add(["x_3"])
    assert [names.fresh("x", list), names.fresh("y", list)] == ["x_4", "y"]


def test_values_with_a_name_are_counted() -> None:
    names = ValueNames()
    names.count("before anyone asked", 1)
    assert names.has("x", lambda: ["x", "", "x"])
    assert not names.has("", list)
    names.count("x", -1)
    assert names.has("x", list)
    names.count("x", -1)
    assert not names.has("x", list)
