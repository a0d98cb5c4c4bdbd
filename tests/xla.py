"""How XLA compiles what the tests run: quickly, for they compile much and run little.

On one core a small training step takes 0.9 s to compile instead of 9. Of flags given twice XLA
takes the last, so that XLA_FLAGS=--xla_cpu_max_isa=AVX2 compiles for an older processor, and
XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" as in production.
"""

import os
from importlib import metadata

FLAGS = ("--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1")
# compiler_options of a large program, which runs for about as long as it compiles.
LARGE = {"xla_backend_optimization_level": 1}
if metadata.version("jaxlib").startswith("0.10."):  # 0.12 has the new emitters alone
    FLAGS += ("--xla_cpu_use_fusion_emitters=false",)
    LARGE["xla_cpu_use_fusion_emitters"] = True  # the older ones' time is as its square


def flags() -> str:
    """Returns these flags, then those of this process's XLA_FLAGS."""
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join([*FLAGS, *(flag for flag in given if flag not in FLAGS)])
