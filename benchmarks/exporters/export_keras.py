"""Export small Keras models by tf2onnx, with inputs to try them with: `judge.py` takes the folder.

    python benchmarks/exporters/export_keras.py FOLDER

needs tensorflow and tf2onnx. Images are channels-last, so that every convolution stands between Transposes; recurrent
layers become Loops, or LSTM and GRU; resizes, padding and pooling are TensorFlow's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
import tf2onnx

layers = tf.keras.layers


def image() -> tf.keras.Model:
    """Separable convolutions, batch normalization, squeeze and excitation, a head."""
    x = start = layers.Input((None, None, 3), name="image")
    for width, stride in ((8, 2), (16, 2), (16, 1)):
        y = layers.SeparableConv2D(width, 3, stride, padding="same", use_bias=False)(x)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        gate = layers.Dense(width, "hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
        y = y * gate
        x = layers.Add()([x, y]) if x.shape[-1] == width and stride == 1 else y
    return tf.keras.Model(start, layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x)))


def segmentation() -> tf.keras.Model:
    """Pools, transposed convolutions, a resize, concatenations."""
    x = start = layers.Input((32, 48, 3), name="image")
    first = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    second = layers.Conv2D(16, 3, padding="same", activation="swish")(layers.MaxPool2D()(first))
    x = layers.Conv2D(16, 3, dilation_rate=2, padding="same", activation="relu")(layers.AveragePooling2D(2)(second))
    x = layers.Concatenate()([layers.UpSampling2D(2, interpolation="bilinear")(x), second])
    x = layers.Concatenate()([layers.Conv2DTranspose(8, 2, 2)(x), first])
    return tf.keras.Model(start, layers.Conv2D(4, 1, activation="softmax")(x))


def text() -> tf.keras.Model:
    """Embeddings, an attention block, a bidirectional LSTM and a GRU."""
    x = start = layers.Input((20,), dtype="int32", name="ids")
    x = layers.Embedding(50, 16)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    return tf.keras.Model(start, layers.Dense(5)(layers.GRU(10)(x)))


def series() -> tf.keras.Model:
    """Causal and dilated convolutions over time, by any number of steps."""
    x = start = layers.Input((None, 6), name="series")
    for rate in (1, 2, 4):
        x = layers.Conv1D(12, 3, padding="causal", dilation_rate=rate, activation="elu")(x)
    return tf.keras.Model(start, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))


def wide() -> tf.keras.Model:
    """Many branches side by side."""
    start = layers.Input((24,), name="features")
    branches = [layers.Dense(4, ("relu", "tanh", "selu")[i % 3])(start[:, i : i + 6]) for i in range(18)]
    return tf.keras.Model(start, layers.Dense(1, "sigmoid")(layers.Concatenate()(branches)))


CASES: dict[str, tuple[Any, dict[str, Any], list[dict[str, int]]]] = {
    "image": (image, {"dims": ["N", "H", "W", 3]}, [{"N": 2, "H": 32, "W": 32}, {"N": 1, "H": 33, "W": 47}]),
    "segmentation": (segmentation, {"dims": ["N", 32, 48, 3]}, [{"N": 2}, {"N": 1}]),
    "text": (text, {"dims": ["N", 20], "dtype": "int32", "kind": "ids:50"}, [{"N": 3}, {"N": 1}]),
    "series": (series, {"dims": ["N", "T", 6]}, [{"N": 2, "T": 30}, {"N": 1, "T": 1}]),
    "wide": (wide, {"dims": ["N", 24]}, [{"N": 4}, {"N": 1}]),
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (build, said, sizes) in CASES.items():
        path = folder / f"keras_{name}.tf2onnx.dynamic.f32.onnx"
        tf.keras.utils.set_random_seed(0)
        model = build()
        given = {"name": model.inputs[0].name, "dtype": "float32", "kind": "normal", **said}
        signature = [
            tf.TensorSpec([d if isinstance(d, int) else None for d in given["dims"]], given["dtype"], given["name"])
        ]
        try:
            function = tf.function(lambda x, model=model: model(x, training=False), input_signature=signature)
            tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(path))
        except Exception as error:
            print(f"{path.name}: exporter refuses: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        path.with_suffix(".json").write_text(json.dumps({"inputs": [given], "sizes": sizes}))
        print(path.name, path.stat().st_size, flush=True)


if __name__ == "__main__":
    main()
