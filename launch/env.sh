# The environment recommended on GPUs; the other scripts here source it. A value of your own wins,
# an empty one as well.

# One process owns a GPU, so that it may take more of its memory at the start than XLA's 75 %.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION-0.9}"

# Gradients are summed over the devices while the backward pass still computes, instead of after it.
export XLA_FLAGS="${XLA_FLAGS---xla_gpu_enable_latency_hiding_scheduler=true}"

# NCCL names the cause of a failure; otherwise Python shows an "unhandled system error".
export NCCL_DEBUG="${NCCL_DEBUG-WARN}"
