"""Decoder facts of a loaded model: from its metadata, else by analysing its graph."""

from __future__ import annotations

import os

import onnxruntime as ort

from memoptc.ir.decoder_facts import KEY, DecoderFacts


def facts_of_session(session: ort.InferenceSession, path: str | os.PathLike[str]) -> DecoderFacts:
    """Give the decoder facts of a model that is loaded from a file.

    Raises:
        InputError: it carries none, and is no decoder that is recognised; the message names what is missing.
    """
    carried = session.get_modelmeta().custom_metadata_map.get(KEY)
    if carried:
        try:
            facts = DecoderFacts.from_json(carried)
        except ValueError:
            facts = None
        names = {port.name for port in session.get_inputs()}
        if facts is not None and {facts.ids, *(c.past for c in facts.caches)} <= names:
            return facts
    from memoptc.ir.decoder import recognise
    from memoptc.ir.onnx_io import read_onnx

    return recognise(read_onnx(path))
