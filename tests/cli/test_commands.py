"""`memoptc profile`, `plan` and `run` as a user calls them: what they print, write and refuse."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest
from decoders import Style, decoder

from memoptc.cli.main import main
from memoptc.runtime.contract import contract_path
from memoptc.runtime.memory.problem import read_csv

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
CNN = MODELS / "digits_cnn.onnx"


def test_profile_shows_planned_beside_recorded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "memory.svg"
    assert main(["profile", str(CNN), "--dim", "batch=4,64", "--json", "--picture", str(picture)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [p["dims"]["batch"] for p in data["points"]] == [4, 64]
    for point in data["points"]:
        recorded = point["recorded"]["as_planned"]
        if recorded["method"] == "recorder":
            assert recorded["run_peak_bytes"] == pytest.approx(point["planned_peak_bytes"], rel=0.05)
        assert sum(a["bytes"] for a in point["alive"]) == point["planned_peak_bytes"] == max(point["curve"])
    assert data["points"][1]["planned_peak_bytes"] > 4 * data["points"][0]["planned_peak_bytes"]
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_profile_prints_tables_and_runs_nothing_when_static(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(CNN), "--static"]) == 0
    out = capsys.readouterr().out
    assert "alive at the peak" in out
    assert "At the peak" in out
    assert main(["profile", str(CNN), "--static", "--contract"]) == 2
    assert "A contract is recorded" in capsys.readouterr().err


def test_profile_writes_a_contract_that_run_applies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(CNN, model)
    assert main(["profile", str(model), "--contract", "-q"]) == 0
    assert contract_path(model).is_file()
    capsys.readouterr()
    assert main(["run", str(model)]) == 0
    assert "as contracted" in capsys.readouterr().out


def test_plan_in_every_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [tmp_path / f"plan{ending}" for ending in (".json", ".csv", ".h", ".svg")]
    assert main(["plan", str(CNN), "--dim", "batch=8", *(f"--save={f}" for f in files)]) == 0
    out = capsys.readouterr().out
    assert "above the floor" in out
    data = json.loads(files[0].read_text())
    schema = json.loads(resources.files("memoptc.runtime.memory").joinpath("plan.schema.json").read_text("utf-8"))
    jsonschema.validate(data, schema)
    assert data["version"] == 1
    assert data["dims"]["batch"] == 8
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["offset"]) for r in rows] == [b["offset"] for b in data["buffers"]]
    assert len(read_csv(files[1].read_text()).buffers) == len(data["buffers"])
    assert f"ARENA_BYTES {data['arena_bytes']}u" in files[2].read_text()
    boxes = [e for e in ElementTree.fromstring(files[3].read_text()).iter() if e.tag.endswith("title")]
    assert len(boxes) == len(data["buffers"])


def test_plan_for_two_memories(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With a fast memory too small for everything, its size holds, and the rest goes to the slow one."""
    costs = []
    for fast in (8, 32, 4096):
        saved = tmp_path / f"{fast}.json"
        arguments = ["plan", str(CNN), "--dim", "batch=8", "--spaces", f"sram={fast}KiB,dram=8MiB@7", f"--save={saved}"]
        assert main(arguments) == 0
        assert f"{len(json.loads(saved.read_text())['moves'])} moves" in capsys.readouterr().out
        plan = json.loads(saved.read_text())
        assert all(s["arena_bytes"] <= s["size"] for s in plan["spaces"])
        assert [s["cost_per_byte"] for s in plan["spaces"]] == [1, 7]
        costs.append(plan["cost"])
    assert costs[0] > costs[1] > costs[2]
    assert plan["spaces"][1]["arena_bytes"] == 0


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_the_header_compiles_and_says_what_the_plan_says(tmp_path: Path) -> None:
    header, source, program = tmp_path / "plan.h", tmp_path / "main.c", tmp_path / "main"
    assert main(["plan", str(CNN), "-q", f"--save={header}", f"--save={tmp_path / 'plan.json'}"]) == 0
    data = json.loads((tmp_path / "plan.json").read_text())
    source.write_text(
        '#include <stdio.h>\n#include "plan.h"\nstatic unsigned char arena[MEMOPTC_DIGITS_CNN_ARENA_BYTES];\n'
        'int main(void) { printf("%zu %u", sizeof arena, MEMOPTC_DIGITS_CNN_BUFFERS); return 0; }\n'
    )
    subprocess.run(["cc", "-Wall", "-Werror", "-std=c99", source, "-o", program], check=True)
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert shown == f"{data['arena_bytes']} {len(data['buffers'])}"


def test_run_gives_the_same_outputs_in_every_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    inputs = tmp_path / "in.npz"
    np.savez(inputs, image=np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    found = {}
    one = ["--threads", "1"]
    ways = {
        "stock": [*one, "--memory", "stock"],
        "arena": one,
        "planned": [*one, "--memory", "planned", "--strict"],
        "proof": ["--arena"],
    }
    for name, way in ways.items():
        outputs = tmp_path / f"{name}.npz"
        assert main(["run", str(CNN), "--inputs", str(inputs), "--outputs", str(outputs), *way]) == 0
        with np.load(outputs) as file:
            found[name] = dict(file)
    assert found["stock"].keys() == found["planned"].keys()
    for name in found["stock"]:
        assert found["stock"][name].tobytes() == found["arena"][name].tobytes() == found["planned"][name].tobytes()
        assert np.allclose(found["stock"][name], found["proof"][name], atol=1e-4)
    assert "guard zones are untouched" in capsys.readouterr().out


def test_what_cannot_be_is_refused_with_a_way_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    limit = ["--memory-limit", "64KiB", "--dim", "batch=4096"]
    for arguments, code, words in [
        (["run", str(CNN), *limit], 4, "limit of 65536 bytes"),
        (["run", str(CNN), "--memory", "planned", *limit], 4, "limit of 65536 bytes"),
        (["run", str(CNN), "--memory", "stock", "--memory-limit", "1GiB"], 2, "does nothing with --memory stock"),
        (["run", str(CNN), "--outputs", str(tmp_path / "out.txt")], 2, "ends in .npz"),
        (["run", str(tmp_path / "none.onnx")], 2, "no such file"),
        (["plan", str(CNN), "--save", str(tmp_path / "plan.txt")], 2, "no form of a plan"),
        (["plan", str(CNN), "--dim", "rows=3"], 2, "not a symbolic dimension"),
        (["plan", str(CNN), "--spaces", "sram"], 2, "cannot read 'sram'"),
        (["plan", str(CNN), "--spaces", "sram=1KiB@x"], 2, "NAME=SIZE@COST"),
        (["plan", str(CNN), "--spaces", "a=1KiB,a=2KiB"], 2, "cannot read 'a=2KiB'"),
        (["plan", str(CNN), "--spaces", "a=1KiB", f"--save={tmp_path / 'plan.csv'}"], 2, "saved as .json only"),
        (["plan", str(CNN), "--spaces", "sram=16,dram=16"], 4, "no room in any space"),
        (["profile", str(CNN), "--dim", "batch"], 2, "binds no dimension"),
    ]:
        assert main(arguments) == code, arguments
        err = " ".join(capsys.readouterr().err.split())
        assert words in err, (arguments, err)
        assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_run_generates_tokens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, prompt, out = tmp_path / "m.onnx", tmp_path / "p.txt", tmp_path / "out.npz"
    onnx.save(decoder(Style(tied=False)), model)
    prompt.write_text("5 17, 3\n80 41 9\n")
    asked = ["run", str(model), "--generate", "--prompt-ids", str(prompt), "--max-new-tokens", "6"]
    assert main([*asked, "--outputs", str(out)]) == 0
    printed = capsys.readouterr()
    rows = [[int(word) for word in line.split()] for line in printed.out.splitlines()]
    assert np.load(out)["ids"].tolist() == rows
    assert (len(rows), len(rows[0])) == (2, 6)
    assert "tokens a sequence" in printed.err
    np.save(tmp_path / "p.npy", np.asarray([80, 41, 9]))
    assert main([*asked[:4], str(tmp_path / "p.npy"), *asked[5:], "-q"]) == 0
    assert capsys.readouterr().out == " ".join(map(str, rows[1])) + "\n"
    np.save(tmp_path / "column.npy", np.asarray([[80], [41], [9]]))  # three prompts of a token each, not one of three
    assert main([*asked[:4], str(tmp_path / "column.npy"), *asked[5:], "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    for wrong, why in (
        (["run", str(model), "--generate"], "go together"),
        ([*asked[:4], str(CNN), *asked[5:]], "no token"),
        *(([*asked[:4], str(tmp_path / n), *asked[5:]], "no token") for n in ("empty.txt", "empty.npy", "broken.npz")),
    ):
        assert main(wrong) == 2
        assert why in capsys.readouterr().err


def test_what_no_input_has_is_refused_by_commands_that_run_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for words in (["opt", str(CNN), "--passes", "simplify"], ["stages", str(CNN), "-o", str(tmp_path / "s")]):
        assert main([*words, "--dim", "nobody=3"]) == 2
        assert "'nobody' is not a symbolic dimension" in capsys.readouterr().err


def test_names_of_what_is_written_are_looked_at_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["frontier", "nowhere.onnx", "--report", "a.txt"], ["profile", "nowhere.onnx", "--picture", "a.txt"]):
        assert main(words) == 2
        assert "a.txt is no" in capsys.readouterr().err
