"""The models that fuzzing starts from."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto

from tools.fuzzing.mutate import Seed

ROOT = Path(__file__).resolve().parent.parent.parent
LARGEST = 110_000  # bytes of a seed; larger ones make the same finds, only later

_HEAD = '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
_HELD = (
    "<float[1,1,1,1] w = {3}, float[1] gamma = {2}, float[1] beta = {1}, float[1] mean = {0.5}, float[1] var = {1}>"
)
NESTED = {
    "if_in_if": f"""{_HEAD}
        g (float[1,1,2,2] x, bool a, bool b) => (float[1,1,2,2] y) {_HELD} {{
          y = If (a) <then_branch = t () => (float[1,1,2,2] p) {{
            p = If (b) <then_branch = tt () => (float[1,1,2,2] q) {{
                c = Conv (x, w) q = BatchNormalization (c, gamma, beta, mean, var)
              }}, else_branch = te () => (float[1,1,2,2] r) {{
                r = BatchNormalization (x, gamma, beta, mean, var)
              }}>
          }}, else_branch = e () => (float[1,1,2,2] s) {{ d = Conv (x, w) s = Mul (d, gamma) }}>
        }}""",
    "loop": f"""{_HEAD}
        g (float[1,1,2,2] x, int64 n) => (float[1,1,2,2] y, float[k,1,1,2,2] z) {_HELD} {{
          y, z = Loop (n, , x) <body = b (int64 i, bool c, float[1,1,2,2] v)
              => (bool d, float[1,1,2,2] o, float[1,1,2,2] scan) {{
            d = Identity (c) h = Conv (v, w) o = BatchNormalization (h, gamma, beta, mean, var) scan = Relu (o)
          }}>
        }}""",
    "scan": f"""{_HEAD}
        g (float[1,1,2,2] x, float[3,1,1,2,2] s) => (float[1,1,2,2] y, float[3,1,1,2,2] z) {_HELD} {{
          y, z = Scan <num_scan_inputs = 1, body = b (float[1,1,2,2] state, float[1,1,2,2] one)
              => (float[1,1,2,2] next, float[1,1,2,2] out) {{
            h = Conv (one, w) out = BatchNormalization (h, gamma, beta, mean, var) next = Add (state, out)
          }}> (x, s)
        }}""",
    "function": f"""{_HEAD}
        g (float[1,1,2,2] x) => (float[1,1,2,2] y) {_HELD} {{
          h = local.block (x, w, gamma, beta, mean, var) y = local.block (h, w, gamma, beta, mean, var)
        }}
        <domain: "local", opset_import: ["" : 17]>
        block (v, k, g, b, m, a) => (o) {{ c = Conv (v, k) o = BatchNormalization (c, g, b, m, a) }}""",
    "function_with_constants": f"""{_HEAD}
        g (float[1,1,2,2] x) => (float[1,1,2,2] y) {{ h = local.outer <e = 0.01> (x) y = Relu (h) }}
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        outer <e> (v) => (o) {{ h = local.inner (v) o = local.inner (h) }}
        <domain: "local", opset_import: ["" : 17]>
        inner (v) => (o) {{
          w = Constant <value = float[1,1,1,1] {{3}}> () g = Constant <value = float[1] {{2}}> ()
          c = Conv (v, w) o = BatchNormalization (c, g, g, g, g)
        }}""",
    "captured": f"""{_HEAD}
        g (float[1,1,2,2] x, bool a) => (float[1,1,2,2] y) {_HELD} {{
          c = Conv (x, w)
          y = If (a) <then_branch = t () => (float[1,1,2,2] p) {{
              p = BatchNormalization (c, gamma, beta, mean, var)
            }}, else_branch = e () => (float[1,1,2,2] q) {{ q = Sub (c, gamma) }}>
        }}""",
}


def load_seeds(finds: Path) -> list[Seed]:
    """Golden cases, nested graphs, models of the project and of others, onnx's backend tests, earlier finds."""
    return [seed for seed in (*texts(), *_files(finds), *_backend()) if len(seed.data) <= LARGEST]


def texts() -> Iterator[Seed]:
    """The golden cases of the tests, and nested graphs."""
    from tests.test_cases import PATHS, load

    for path in PATHS:
        yield Seed("case", path.stem, load(path).before.SerializeToString())
    for name, text in NESTED.items():
        yield Seed("nested", name, onnx.parser.parse_model(text).SerializeToString())


def _files(finds: Path) -> Iterator[Seed]:
    folders = (("model", ROOT / "models"), ("shared", ROOT.parent / "shared" / "models"), ("find", finds))
    for family, folder in folders:
        for path in sorted(folder.glob("*.onnx")):
            data = path.read_bytes()
            if _parses(data):
                yield Seed(family, path.stem, data)


def _backend() -> Iterator[Seed]:
    from onnx.backend.test.case.node import collect_testcases

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(folder.rglob("*.onnx")):
        yield Seed("backend", path.parent.name, path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx's own cases overflow on purpose
        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None:
            yield Seed("backend", case.name, case.model.SerializeToString())


def _parses(data: bytes) -> bool:
    try:
        ModelProto.FromString(data)
    except Exception:  # noqa: BLE001 - an earlier find need not be a model
        return False
    return True
