"""On CPUs, what a step frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

# Writes 64 MB in a thread, in pieces too large for a heap of its own, and counts pages' faults.
CODE = """
import resource, threading
from otter_jax.run import heap
if keep: heap.share_and_keep()
def write(): bytearray(64 << 20)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: [write() for _ in range(2)])
    thread.start(); thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); print(faults())
if keep: heap.give_back()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_costs_no_faults_again():
    def faults(keep):
        command = [sys.executable, "-c", f"keep = {keep}\n{CODE}"]
        found = subprocess.run(command, capture_output=True, check=True, text=True)
        return [int(line) > 1000 for line in found.stdout.splitlines()]

    assert faults(False) == [True, True]
    assert faults(True) == [False, True]
