"""Write the small decoders that tests hold: a Llama and a GPT-2 of two layers, as both of torch's exporters spell them.

    python benchmarks/exporters/fixtures.py tests/fixtures

needs torch, onnx, onnxscript and transformers. Weights are random, and large enough for tokens to differ; notes of the
exporter (source lines, modules) are left out. The same versions give the same bytes.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from cases import Case
from export import export
from language import VOCABULARY, causal
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HEADS, WIDTH, LAYERS = 2, 8, 2


def llama() -> Case:
    """Rotary positions, RMS norms, one key/value head for two query heads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HEADS * WIDTH, intermediate_size=2 * HEADS * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return causal(LlamaForCausalLM(config))


def gpt2() -> Case:
    """Learned positions, queries, keys and values out of one product, the head tied to the embedding."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=HEADS * WIDTH, n_layer=LAYERS, n_head=HEADS,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return causal(GPT2LMHeadModel(config))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for build in (llama, gpt2):
        for by in ("dynamo", "script"):
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "model.onnx"
                export(build(), path, by=by, dynamic=True, dtype=torch.float32)
                model = onnx.load(path)
            for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
                part.ClearField("doc_string")
                part.ClearField("metadata_props")
            model.graph.ClearField("value_info")
            model.ClearField("metadata_props")
            model.graph.ClearField("metadata_props")
            data = gzip.compress(model.SerializeToString(deterministic=True), mtime=0)
            file = folder / f"{build.__name__}.{by}.onnx.gz"
            file.write_bytes(data)
            print(file.name, len(data))


if __name__ == "__main__":
    main()
