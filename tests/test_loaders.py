"""Loaders for other languages give what onnxruntime gives in Python; skipped where their tools are not at hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import memoptc
from memoptc.runtime.contract import arena_entries

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODULES = Path(os.environ.get("MEMOPTC_NODE_MODULES", EXAMPLES / "loaders" / "node_modules"))


def test_loaders_are_short() -> None:
    files = [file for file in (EXAMPLES / "loaders").iterdir() if file.is_file()]
    assert files
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the loaders, a compiled and measured model, and an input for it."""
    folder = tmp_path_factory.mktemp("loaders")
    shutil.copytree(EXAMPLES / "loaders", folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    memoptc.compile(EXAMPLES / "models" / "digits_cnn.onnx", measure=False, freeze={"batch": 32}).save(
        folder / "small.onnx"
    )
    np.random.default_rng(0).random((32, 1, 8, 8), np.float32).tofile(folder / "image.bin")
    return folder


def run(folder: Path, *command: str) -> str:
    """Run a command there; give what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits(folder: Path) -> np.ndarray:
    """What the original gives for the input."""
    image = np.fromfile(folder / "image.bin", np.float32).reshape(32, 1, 8, 8)
    session = onnxruntime.InferenceSession(EXAMPLES / "models" / "digits_cnn.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image})
    return np.asarray(found[0])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(
    not (MODULES / "onnxruntime-node").is_dir(),
    reason="onnxruntime-node is not installed (npm install onnxruntime-node, MEMOPTC_NODE_MODULES=.../node_modules)",
)
def test_javascript_runs_a_compiled_model_by_its_contract(folder: Path) -> None:
    (folder / "node_modules").symlink_to(MODULES.resolve())
    found = json.loads(run(folder, "node", "load.mjs", "small.onnx", "image=image.bin"))
    assert found["dims"] == [32, 10]
    np.testing.assert_allclose(found["first"], logits(folder), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="the wheel's library has another name there")
def test_cpp_runs_a_compiled_model_in_a_sized_arena(folder: Path) -> None:
    """Its library is the one of Python's wheel, its arena the one of the contract: one that is too small is refused."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    run(folder, "g++", "-std=c++17", "load.cpp", "libonnxruntime.so.1", "-Wl,-rpath,.", "-o", "load")
    contract = folder / "small.session.json"
    written = json.loads(contract.read_text())

    def load(arena_bytes: int) -> subprocess.CompletedProcess[str]:
        arena = arena_entries(arena_bytes, arena_bytes)
        contract.write_text(json.dumps(written | {"arena": arena}, indent=2))
        command = ["./load", "small.onnx", "image=image.bin"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)

    name, _, numbers = load(1 << 23).stdout.partition(":")
    assert name == "logits"
    np.testing.assert_allclose(np.array(numbers.split(), float), logits(folder), rtol=1e-4, atol=1e-5)
    refused = load(1 << 16)
    assert refused.returncode == 1
    assert "Available memory" in refused.stderr


STUBS = {
    "OrtException": "public class OrtException extends Exception {}",
    "OnnxValue": "public interface OnnxValue { Object getValue() throws OrtException; }",
    "OnnxTensorLike": "public abstract class OnnxTensorLike implements OnnxValue {}",
    "OnnxJavaType": "public enum OnnxJavaType { FLOAT; public final int size = 4; }",
    "NodeInfo": 'public class NodeInfo { public String getName() { return ""; }'
    " public Object getInfo() { return null; } }",
    "TensorInfo": "public class TensorInfo { public OnnxJavaType type; public long[] getShape() { return null; } }",
    "OnnxTensor": """public class OnnxTensor extends OnnxTensorLike { public Object getValue() { return null; }
  public static OnnxTensor createTensor(OrtEnvironment e, java.nio.ByteBuffer b, long[] s, OnnxJavaType t)
  throws OrtException { return null; } }""",
    "OrtEnvironment": """public class OrtEnvironment {
  public static OrtEnvironment getEnvironment() { return new OrtEnvironment(); }
  public OrtSession createSession(String path, OrtSession.SessionOptions options) throws OrtException {
    System.out.println("opened=" + path); return new OrtSession(); } }""",
    "OrtSession": """public class OrtSession implements AutoCloseable { public void close() {}
  public java.util.Map<String, NodeInfo> getInputInfo() { return java.util.Map.of(); }
  public java.util.Map<String, OnnxValue> none = java.util.Map.of();
  public Iterable<java.util.Map.Entry<String, OnnxValue>> run(java.util.Map<String, ? extends OnnxTensorLike> feed) {
    return none.entrySet(); }
  static void said(String what) { System.out.println(what); }
  public static class SessionOptions { public enum OptLevel { NO_OPT, ALL_OPT }
    public void setMemoryPatternOptimization(boolean b) { said("pattern=" + b); }
    public void setCPUArenaAllocator(boolean b) { said("arena=" + b); }
    public void setOptimizationLevel(OptLevel level) { said("level=" + level); }
    public void setIntraOpNumThreads(int n) { said("threads=" + n); }
    public void addConfigEntry(String key, String value) { said(key + "=" + value); } } }""",
}
"""What the loader uses of onnxruntime's Java package, which no registry of Python's or Debian's holds."""


@pytest.mark.skipif(shutil.which("javac") is None, reason="no Java compiler is installed")
def test_java_sets_what_the_contract_says(folder: Path) -> None:
    package = folder / "ai" / "onnxruntime"
    package.mkdir(parents=True)
    for name, text in STUBS.items():
        (package / f"{name}.java").write_text(f"package ai.onnxruntime;\n{text}\n")
    run(folder, "javac", "-cp", ".", "Load.java")
    contract = json.loads((folder / "small.session.json").read_text())
    told = set(run(folder, "java", "-cp", ".", "Load", "small.onnx").split())
    session = contract["session"]
    expected = {f"{key}={value}" for key, value in contract["config"].items()} | {"opened=small.onnx"}
    expected |= {f"pattern={str(session['enable_mem_pattern']).lower()}"}
    assert expected <= told
    assert f"threads={session.get('intra_op_num_threads', 0)}" in told
    assert "level=ALL_OPT" in told


@pytest.mark.skipif(shutil.which("dotnet") is None, reason="dotnet is not installed")
def test_csharp_runs_a_compiled_model_by_its_contract(folder: Path) -> None:
    run(folder, "dotnet", "new", "console", "-o", "load_cs")
    shutil.copy(folder / "Load.cs", folder / "load_cs" / "Program.cs")
    run(folder / "load_cs", "dotnet", "add", "package", "Microsoft.ML.OnnxRuntime")
    told = run(folder / "load_cs", "dotnet", "run", "--", str(folder / "small.onnx"), f"image={folder / 'image.bin'}")
    name, _, numbers = told.partition(":")
    assert name == "logits"
    np.testing.assert_allclose(np.array(numbers.split(), float), logits(folder), rtol=1e-4, atol=1e-5)
