"""Olive: memoptc as a pass of a workflow.

Needs olive-ai. A workflow finds the class where a package file names it: `olive run --config workflow.json
--package-config packages.json`, with {"passes": {"MemoptcCompile": {"module_path": "olive_pass.MemoptcCompile"}}} added
to Olive's own `olive_config.json`, and this file on the path.
"""

from pathlib import Path

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import memoptc


class MemoptcCompile(Pass):
    """Compiles an ONNX model with memoptc, and proves the result against it."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "level": PassConfigParam(type_=int, default_value=2, description="0 to 3"),
            "target": PassConfigParam(type_=str, default_value="float32", description="float32, int8, int4, ..."),
            "calibration": PassConfigParam(type_=str, default_value=None, description="path of samples"),
            "memory_budget": PassConfigParam(type_=str, default_value=None, description="such as 64MiB"),
            "measure": PassConfigParam(type_=bool, default_value=True, description="measure need and latency"),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        folder = Path(output_model_path)
        output = folder if folder.suffix == ".onnx" else folder / "model.onnx"
        output.parent.mkdir(parents=True, exist_ok=True)
        options = {name: getattr(config, name) for name in self._default_config(self.accelerator_spec)}
        memoptc.compile(model.model_path, **options).save(output)
        return ONNXModelHandler(model_path=str(output))


if __name__ == "__main__":
    source = Path(__file__).resolve().parents[1] / "models" / "digits_cnn.onnx"
    made = create_pass_from_dict(MemoptcCompile, {"level": 1, "measure": False}, disable_search=True)
    result = made.run(ONNXModelHandler(model_path=str(source)), "olive-output")
    print(Path(result.model_path).name, result.io_config["output_names"])
