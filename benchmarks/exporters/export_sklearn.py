"""Export fitted scikit-learn estimators by skl2onnx, with inputs to try them with: `judge.py` takes the folder.

    python benchmarks/exporters/export_sklearn.py FOLDER

needs scikit-learn and skl2onnx. Trees, kernels and text write operators of `ai.onnx.ml`; classifiers give a list of
maps or, without it, probabilities; pipelines scale and choose before they predict.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn import (
    cluster,
    decomposition,
    ensemble,
    gaussian_process,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
)

WIDTH = 12
SIZES = [{"N": 5}, {"N": 1}, {"N": 33}]


def estimators() -> dict[str, Any]:
    """Estimators by name: classifiers, regressors, transformers, pipelines of them."""
    scaled = preprocessing.StandardScaler
    return {
        "logistic": pipeline.make_pipeline(scaled(), linear_model.LogisticRegression()),
        "ridge": pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()),
        "forest": ensemble.RandomForestClassifier(12, max_depth=5, random_state=0),
        "boosting": ensemble.GradientBoostingRegressor(n_estimators=20, random_state=0),
        "histogram": ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0),
        "voting": ensemble.VotingClassifier(
            [("a", linear_model.LogisticRegression()), ("b", naive_bayes.GaussianNB())],
            voting="soft",
            flatten_transform=False,
        ),
        "perceptron": pipeline.make_pipeline(scaled(), neural_network.MLPClassifier((64, 32), max_iter=60)),
        "vectors": svm.SVC(probability=False),
        "neighbours": neighbors.KNeighborsRegressor(3),
        "process": gaussian_process.GaussianProcessRegressor(),
        "components": pipeline.make_pipeline(preprocessing.MinMaxScaler(), decomposition.PCA(4)),
        "clusters": cluster.KMeans(3, n_init=2, random_state=0),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((200, WIDTH)).astype(np.float32)
    labels = (data[:, 0] + data[:, 1] * data[:, 2] > 0).astype(np.int64) + (data[:, 3] > 1)
    for name, estimator in estimators().items():
        target = (
            data[:, :2].sum(1) if hasattr(estimator, "predict") and "Regress" in type(estimator).__name__ else labels
        )
        fitted = estimator.fit(data, target)
        maps = [False, True] if hasattr(fitted, "predict_proba") else [False]
        for zipped in maps:
            path = folder / f"sklearn_{name}{'_maps' if zipped else ''}.skl2onnx.dynamic.f32.onnx"
            options = {} if not maps[1:] else {type(fitted): {"zipmap": zipped}}
            if isinstance(fitted, pipeline.Pipeline) and maps[1:]:
                options = {type(fitted.steps[-1][1]): {"zipmap": zipped}}
            try:
                model = to_onnx(fitted, data[:1], target_opset={"": 18, "ai.onnx.ml": 3}, options=options)
            except Exception as error:
                print(f"{path.name}: exporter refuses: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            path.write_bytes(model.SerializeToString())
            given = {"name": model.graph.input[0].name, "dtype": "float32", "dims": ["N", WIDTH], "kind": "normal"}
            path.with_suffix(".json").write_text(json.dumps({"inputs": [given], "sizes": SIZES}))
            print(path.name, path.stat().st_size, flush=True)


if __name__ == "__main__":
    main()
