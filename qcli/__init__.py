"""qcli quantizes ONNX models, and proves with onnxruntime what became of them.

    from pathlib import Path
    import qcli

    report = qcli.quantize(qcli.QuantizeJob(model=Path("model.onnx"), calibration=Path("calib/")))

`import qcli` costs nothing: every name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcli.analysis.nouns import Analysis as Analysis
    from qcli.analysis.nouns import AnalyzeJob as AnalyzeJob
    from qcli.analysis.work import analyze as analyze
    from qcli.benching.nouns import BenchJob as BenchJob
    from qcli.benching.work import bench as bench
    from qcli.benching.work import bench_job as bench_job
    from qcli.check import check_job as check_job
    from qcli.cost_listing import KernelsJob as KernelsJob
    from qcli.cost_listing import list_kernels as list_kernels
    from qcli.doctor import examine as examine
    from qcli.errors import InputError as InputError
    from qcli.errors import NothingToDoError as NothingToDoError
    from qcli.errors import QcliError as QcliError
    from qcli.errors import ResourceError as ResourceError
    from qcli.errors import RuntimeFailure as RuntimeFailure
    from qcli.errors import UnsupportedError as UnsupportedError
    from qcli.errors import UsageError as UsageError
    from qcli.fallback import quantize as quantize
    from qcli.graph import load_model as load_model
    from qcli.graph import save_model as save_model
    from qcli.inspect import inspect_model as inspect_model
    from qcli.job import QuantizeJob as QuantizeJob
    from qcli.pipeline import calibrate_job as calibrate_job
    from qcli.plan import make_plan as make_plan
    from qcli.recipe import load_recipe as load_recipe
    from qcli.report import Report as Report
    from qcli.side_by_side import CompareJob as CompareJob
    from qcli.side_by_side import compare_models as compare_models
    from qcli.stages import make_plan_file as make_plan_file
    from qcli.stages import make_statistics_file as make_statistics_file
    from qcli.stages import merge_statistics as merge_statistics
    from qcli.statistics import load_statistics as load_statistics
    from qcli.tuning.nouns import Limits as Limits
    from qcli.tuning.nouns import TuneJob as TuneJob
    from qcli.tuning.nouns import TuneReport as TuneReport
    from qcli.tuning.work import tune as tune
    from qcli.watch import Watch as Watch

    __version__: str

_HOMES = {
    "analysis.nouns": ("Analysis", "AnalyzeJob"),
    "analysis.work": ("analyze",),
    "benching.nouns": ("BenchJob",),
    "benching.work": ("bench", "bench_job"),
    "check": ("check_job",),
    "side_by_side": ("CompareJob", "compare_models"),
    "cost_listing": ("KernelsJob", "list_kernels"),
    "doctor": ("examine",),
    "errors": (
        "InputError",
        "NothingToDoError",
        "QcliError",
        "ResourceError",
        "RuntimeFailure",
        "UnsupportedError",
        "UsageError",
    ),
    "fallback": ("quantize",),
    "graph": ("load_model", "save_model"),
    "inspect": ("inspect_model",),
    "job": ("QuantizeJob",),
    "pipeline": ("calibrate_job",),
    "plan": ("make_plan",),
    "recipe": ("load_recipe",),
    "report": ("Report",),
    "stages": ("make_plan_file", "make_statistics_file", "merge_statistics"),
    "statistics": ("load_statistics",),
    "tuning.nouns": ("Limits", "TuneJob", "TuneReport"),
    "tuning.work": ("tune",),
    "watch": ("Watch",),
}
"""The public names by the module that they live in. None is called like a module, which would hide it."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qcli' has no attribute '{name}'")
    value = getattr(import_module(f"qcli.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qcli")
    except PackageNotFoundError:
        return "unknown"
