"""optimum: compile the model of an `ORTModelFor...`, and put the result, in `Session`, in its place.

Needs optimum-onnx. The model here is a small BERT with random weights, so that nothing has to be fetched; take
`ORTModelForSequenceClassification.from_pretrained(NAME, export=True)` for one of yours.
"""

from pathlib import Path

import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import BertConfig, BertForSequenceClassification

import memoptc
from memoptc.runtime import Session


def compiled(model: ORTModelForSequenceClassification, **options: object) -> ORTModelForSequenceClassification:
    """Give the model with its file compiled; `options` are those of `memoptc.compile`."""
    path = Path(model.path)
    output = path.with_name("compiled.onnx")
    memoptc.compile(path, **options).save(output)
    return type(model)(config=model.config, session=Session(output))


config = BertConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_labels=3
)
torch.manual_seed(0)
BertForSequenceClassification(config).eval().save_pretrained("bert")
main_export("bert", "bert-onnx", task="text-classification", do_validation=False)

original = ORTModelForSequenceClassification.from_pretrained("bert-onnx")
small = compiled(original, level=1, measure=False)

feed = {
    "input_ids": torch.randint(0, 100, (2, 16)),
    "attention_mask": torch.ones(2, 16, dtype=torch.int64),
    "token_type_ids": torch.zeros(2, 16, dtype=torch.int64),
}
assert torch.equal(small(**feed).logits, original(**feed).logits)
print(type(small.session).__name__, tuple(small(**feed).logits.shape))
