"""What exact search costs: `predict.neighbours` beside faiss's flat index, and an index on disk.

    python -m benchmarks.search [--faiss PYTHON] [--threads 2] [--index 1000000]

The same float32 vectors of length 1 (19,958, as many as Open Images has classes), the ten nearest
of 1 and of 256 queries, on the same cores. PYTHON is an interpreter that has faiss-cpu (`pip
install faiss-cpu`), whose IndexFlatIP is built beforehand. Both are processes of their own that
take turns, and each call is timed; the first of a turn is left out. On a machine that is busy only
the CPU time with --threads 1 says much: idle threads spin. --index also writes an index of so many
pictures to a temporary folder, and searches it from the file, with its memory; --threads 0 does
that alone.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

VECTORS, TOP = 19_958, 10
QUERIES = (1, 256)
TURNS, CALLS = 7, {1: 30, 256: 5}


def unit(seed: int, count: int, dim: int) -> np.ndarray:
    """Random vectors of length 1."""
    x = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def work(kind: str, dim: int) -> None:
    """Answers each line on stdin, a number of queries, with the times of its calls and a result."""
    vectors = unit(0, VECTORS, dim)
    if kind == "faiss":
        import faiss

        flat = faiss.IndexFlatIP(dim)
        flat.add(vectors)
        search = flat.search
    else:
        from otter_jax.predict.neighbours import nearest

        def search(queries, top):
            found = nearest(queries, [vectors], top)
            return found.cosines, found.rows

    for line in sys.stdin:
        queries = unit(1, int(line), dim)
        times = []
        for _ in range(1 + CALLS[int(line)]):
            wall, cpu = time.perf_counter(), time.process_time()
            _, rows = search(queries, TOP)
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        print(json.dumps({"times": times[1:], "rows": np.asarray(rows).tolist()}), flush=True)


def compare(faiss: str | None, threads: int, dim: int) -> str:
    """A table of the medians, in milliseconds."""
    programs = {"ours": sys.executable} | ({"faiss": faiss} if faiss else {})
    here = pathlib.Path(__file__)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = os.environ | limits | {"PYTHONPATH": str(here.parents[1])}
    started = {
        kind: subprocess.Popen(
            [program, str(here), "--work", kind, "--dim", str(dim)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for kind, program in programs.items()
    }
    times: dict[tuple[str, int], list] = {}
    rows: dict[tuple[str, int], list] = {}
    for _ in range(TURNS):
        for count in QUERIES:
            for kind, process in started.items():
                process.stdin.write(f"{count}\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
                times.setdefault((kind, count), []).extend(found["times"])
                rows[kind, count] = found["rows"]
    for process in started.values():
        process.stdin.close()
        process.wait()
    lines = [
        f"{VECTORS:,} x {dim}, the {TOP} nearest; {threads} threads, load "
        f"{os.getloadavg()[0]:.1f} at the end; medians of {TURNS} turns",
        "",
        "| queries | program | wall, ms | fastest, ms | CPU, ms | same neighbours |",
        "|---|---|---|---|---|---|",
    ]
    for count in QUERIES:
        for kind in programs:
            wall, cpu = zip(*times[kind, count], strict=True)
            same = np.mean(np.array(rows[kind, count]) == np.array(rows["ours", count]))
            figures = (statistics.median(wall), min(wall), statistics.median(cpu))
            shown = " | ".join(f"{1000 * seconds:.2f}" for seconds in figures)
            lines.append(f"| {count} | {kind} | {shown} | {same:.2%} |")
    return "\n".join(lines)


def write_index(out: pathlib.Path, count: int, dim: int) -> None:
    """Writes an index of pictures that are not there."""
    import types

    import pyarrow as pa

    from otter_jax.predict import index, vectors
    from otter_jax.predict.outputs import ROWS, Parts

    model = types.SimpleNamespace(name="random", identity="0", dim=dim)
    schema = vectors.schema(index.COLUMNS, out, model, {})
    with Parts(out, schema, vectors.about(model)) as parts:
        for start in range(0, count, ROWS):
            size = min(ROWS, count - start)
            paths = [f"/photographs/{(start + i) % 997:03}/{start + i:09}.jpg" for i in range(size)]
            packed = vectors.packed(unit(start, size, dim), schema.field("embedding").type)
            numbers = pa.array([0] * size, pa.int64())
            parts.add(pa.record_batch([pa.array(paths), numbers, numbers, packed], schema))
        parts.finish(parts.rows())


def search_index(file: pathlib.Path, dim: int) -> None:
    """Prints what a search of an index costs."""
    from otter_jax.predict.index import Index
    from otter_jax.predict.neighbours import nearest

    for count in QUERIES:
        wall, cpu = time.perf_counter(), time.process_time()
        index = Index(file)
        found = nearest(unit(1, count, dim), index.blocks(), TOP)
        index.paths(int(row) for row in found.rows.ravel())
        print(
            f"{index.count:,} x {dim} from the file ({file.stat().st_size / 1e6:,.0f} MB), {count} "
            f"queries: {time.perf_counter() - wall:.1f} s wall, "
            f"{time.process_time() - cpu:.1f} s CPU; memory of the process at most "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faiss", metavar="PYTHON")
    parser.add_argument("--index", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.dim)
    elif options.file:
        search_index(options.file, options.dim)
    else:
        if options.threads:
            print(compare(options.faiss, options.threads, options.dim), flush=True)
        if options.index:
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder, "index.parquet")
                write_index(file, options.index, options.dim)
                # In a process of its own, whose memory is that of the search alone.
                arguments = ["--file", str(file), "--dim", str(options.dim)]
                subprocess.run([sys.executable, "-m", "benchmarks.search", *arguments], check=True)


if __name__ == "__main__":
    main()
