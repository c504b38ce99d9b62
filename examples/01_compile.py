"""Compile a trained digit classifier to int8 and say what that gained: `python 01_compile.py [OUTPUT.onnx]`."""

from __future__ import annotations

import sys
from pathlib import Path

import memoptc

MODELS = Path(__file__).parent / "models"


def main(output: str = "digits_cnn.int8.onnx") -> None:
    result = memoptc.compile(
        MODELS / "digits_cnn.onnx",
        level=2,
        target="int8",
        calibration=MODELS / "digits_calibration.npz",
        validation=MODELS / "digits_validation.npz",
        dims={"batch": 1},
    )
    result.save(output)

    report = result.report.to_json()
    before, after = report["control"], report["candidate"]
    print(f"file       {before['file_bytes']:>8} -> {Path(output).stat().st_size} bytes")
    print(f"weights    {before['weight_bytes']:>8} -> {after['weight_bytes']} bytes")
    print(f"peak       {before['planned_peak_bytes']:>8} -> {after['planned_peak_bytes']} bytes of activations")
    print(f"accuracy   {report['accuracy']['control']:.4f} -> {report['accuracy']['candidate']:.4f}")
    for out in report["verification"]["outputs"]:
        print(f"{out['name']}: signal to noise {out['sqnr_db']:.1f} dB, same class on {out['top1_agreement']:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
