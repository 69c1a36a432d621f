"""The command line: parse, one call, print. Every command has `--json`; bad input ends with one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmlab.reference.errors import InputError

WORD = 13
"""Characters below which a column of a table may not shrink if it holds a word as long."""
UNBROKEN = ("component", "id", "dtype", "passed")
"""Columns that are never folded."""
INTERRUPTED = 130
"""What the parser returns after Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The LLM stack: checked components, measured kernels, and a simulator scored against real runs.",
)
simulate_app = typer.Typer(no_args_is_help=True, help="Simulate one run: metrics, per-request table, timeline.")
plan_app = typer.Typer(no_args_is_help=True, help="Search deployments: the cheapest that keeps the promise, and why.")
validate_app = typer.Typer(no_args_is_help=True, help="Predicted against measured, row by row.")
workload_app = typer.Typer(no_args_is_help=True, help="Describe a request trace; fit a small synthetic twin of it.")
app.add_typer(simulate_app, name="simulate")
app.add_typer(plan_app, name="plan")
app.add_typer(validate_app, name="validate")
app.add_typer(workload_app, name="workload")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Component ids or families; all when none are given.")]
Backends = Annotated[list[str] | None, typer.Option(help="Only these backends: numba, torch, triton.")]
OwnKernel = Annotated[str | None, typer.Option(help="Your own kernel, FILE.py:FUNCTION; needs --op and one --backend.")]
ImplementedOp = Annotated[str | None, typer.Option(help="Component that --kernel implements.")]
RowLimit = Annotated[int | None, typer.Option(help="At most this many rows, spread over the files.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]

MODEL = typer.Option(help="Preset name, or path of a Hugging Face config.json.")
Model = Annotated[str, MODEL]
Gpu = Annotated[str, typer.Option(help="Device, by name or alias.")]
FirstRequests = Annotated[int | None, typer.Option(help="Only the first N requests.")]
RateFactor = Annotated[float, typer.Option(help="Let requests arrive this many times as fast.")]
MemoryPart = Annotated[float, typer.Option(help="Part of the device memory the engine may fill.")]

GlobalBatch = Annotated[int, typer.Option(min=1, help="Sequences per optimizer step.")]
SequenceTokens = Annotated[int, typer.Option(min=1, help="Tokens per sequence.")]
TensorParallel = Annotated[int, typer.Option(min=1, help="Tensor-parallel degree of training.")]
PipelineStages = Annotated[int, typer.Option(min=1, help="Pipeline stages of training.")]
Microbatch = Annotated[int, typer.Option(min=1, help="Sequences per forward pass of training.")]
Framework = Annotated[
    str, typer.Option(help="Training preset whose habits and constants apply: megatron, fsdp, deepspeed-zero1, ...")
]
Optimizer = Annotated[str, typer.Option(help="adam, adam-8bit, adafactor, muon, sgd-momentum or sgd.")]
Protocols = Annotated[str, typer.Option(help="Of collectives on a topology: ideal, nccl-ampere or nccl-hopper.")]


def picture(what: str) -> Any:
    """An option that names the file of a picture."""
    return typer.Option(help=f"{what} (.png, .svg, .pdf).")


def perfetto(what: str) -> Any:
    """An option that names the file of a timeline."""
    return typer.Option(help=f"{what} for Perfetto (.json or .json.gz).")


Timeline = Annotated[Path | None, perfetto("Write a timeline")]


def console() -> Console:
    """Where tables go (a pipe gets room for wide ones); progress and errors go to standard error."""
    if "COLUMNS" in os.environ:
        return Console(width=int(os.environ["COLUMNS"]))
    return Console() if sys.stdout.isatty() else Console(width=160)


def emit(result: Any) -> None:
    """Print one JSON document to standard output."""
    json.dump(result, sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as one table.

    Where the screen is too narrow, what all rows share is said once; then rows become blocks of `name: value`.
    """
    screen = console()
    written = [{key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()} for row in rows]
    widths = _least_widths(written)
    if sum(width + 3 for width in widths.values()) >= screen.width and len(written) > 1:
        shared = {key: text for key, text in written[0].items() if all(row.get(key) == text for row in written)}
        title = "; ".join([title, *(f"{key}: {text}" for key, text in shared.items() if text)])
        written = [{key: text for key, text in row.items() if key not in shared} for row in written]
        widths = _least_widths(written)
    if sum(width + 1 for width in widths.values()) >= screen.width:
        screen.print(title, markup=False, highlight=False, style="bold")
        for row in written:
            first, *others = row.items()
            told = "; ".join(f"{key}: {text}" for key, text in others if text)
            screen.print(Text(first[1], style="bold"), Padding(Text(told), (0, 0, 0, 2)), sep="\n")
        return
    beside = 1 if sum(width + 3 for width in widths.values()) < screen.width else 0
    table = Table(title=title, title_justify="left", header_style="bold", padding=(0, beside))
    for column, width in widths.items():
        table.add_column(column, overflow="fold", no_wrap=column in UNBROKEN, min_width=width)
    for row in written:
        table.add_row(*row.values())
    screen.print(table)


def _least_widths(rows: Sequence[dict[str, str]]) -> dict[str, int]:
    """Characters below which each column cannot be read."""
    return {
        key: max(_widest(key), *(len(row.get(key, "")) if key in UNBROKEN else _widest(row.get(key, "")) for row in rows))
        for key in (rows[0] if rows else ())
    }


def _widest(text: str) -> int:
    """Width a text asks for: its longest word, or WORD if that is longer."""
    return min(max(map(len, text.split()), default=0), WORD)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; yields `advance(name, done, total)`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda name, done, total: bar.update(task, description=f"{what} {name}", completed=done, total=total)


@app.command("list")
def list_command(ids: Ids = None, json_output: Json = False) -> None:
    """List components: id, paper, twins, oracle, cost, gradient, notebook; of a single one also how it is called."""
    from llmlab.harness.check import choose
    from llmlab.harness.listing import called_as, listing

    chosen = choose(ids)
    rows = listing([component.id for component in chosen])
    if json_output:
        emit(rows)
        return
    title = f"{len(rows)} component{'s' if len(rows) > 1 else ''}"
    show(title, [{k: ", ".join(v) if isinstance(v, list) else v for k, v in row.items() if k != "family"} for row in rows])
    if len(chosen) == 1:
        console().print(f"called as {called_as(chosen[0])}", markup=False, highlight=False)


@app.command("check")
def check_command(
    ids: Ids = None,
    backend: Backends = None,
    kernel: OwnKernel = None,
    op: ImplementedOp = None,
    seeds: Annotated[int, typer.Option(min=1, help="Inputs drawn per check; 25 is the full budget of properties.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one per processor if not given, one on a GPU.")] = None,
    json_output: Json = False,
) -> None:
    """Check components: oracles, parity in every dtype, gradients, layouts, cost laws. Exit code 1 if any check fails."""
    import importlib.util

    processes = jobs or os.cpu_count() or 1
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            processes = jobs or 1
        else:
            os.environ.setdefault("TRITON_INTERPRET", "1")
    from llmlab.harness.check import bring, run_checks
    from llmlab.harness.listing import called_as

    only = bring(kernel, op, backend, ids)
    with progress_bar("checking") as advance:
        verdicts = run_checks(ids, backend, only=only, seeds=seeds, jobs=processes, progress=advance)
    rows = [verdict.as_row() for verdict in verdicts]
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if json_output:
        emit([{**row, "error": None if row["error"] == float("inf") else row["error"]} for row in rows])
    else:
        columns = ("component", "check", "against", "dtype", "error", "allowed", "passed", "note")
        show(f"{len(rows)} checks, {len(failed)} failed", [{key: row[key] for key in columns} for row in rows])
        told = [f"{one.component} {one.check} {one.against} {one.dtype}: failed at {one.case}" for one in failed]
        if only is not None and failed:
            told.append(f"{only.component.id} is called as {called_as(only.component)}")
        console().print(*told, sep="\n", markup=False, highlight=False, soft_wrap=True) if told else None
    if failed:
        raise typer.Exit(1)


@app.command("evaluate")
def evaluate_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Folders with config.json, safetensors and tokenizer, GGUF files, or llama2.c .bin with a .model beside.",
            metavar="MODEL...",
        ),
    ],
    scenarios: Annotated[
        Path | None,
        typer.Option(help="YAML of scenarios: lists of [text, [right, wrong, ...]]; the shipped ones if not given."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text file: also bits per byte of it.")] = None,
    seed: Annotated[int, typer.Option(help="Of perturbations, intervals and untrained weights.")] = 0,
    json_output: Json = False,
) -> None:
    """Ask models multiple-choice questions, also with typos and in dialect; accuracy, worst case, calibration, win rates.

    Beside them stand each model with untrained weights and the frequencies of letters.
    """
    from llmlab.harness.evaluation.models import letter_frequencies, load_model, untrained
    from llmlab.harness.evaluation.multiple_choice import SHIPPED, evaluate, read_scenarios
    from llmlab.simulator.workload.text import read_text

    questions = read_scenarios(scenarios or SHIPPED)
    passage = None if text is None else read_text(text)
    loaded = [load_model(path) for path in models]
    read = [*loaded, *(untrained(model, seed) for model in loaded)]
    with progress_bar("asking") as advance:
        result = evaluate([*read, letter_frequencies()], questions, seed=seed, progress=advance)
    if passage is not None:
        result["bits_per_byte"] = [{"model": model.name, "bits_per_byte": model.bits_per_byte(passage)} for model in read]
    if json_output:
        emit(result)
        return
    show(f"{len(questions)} scenarios", result["rows"])
    show("Mean win rates", result["models"])
    if passage is not None:
        show(f"Bits per byte of {text}", result["bits_per_byte"])


@app.command("bench")
def bench_command(
    ids: Ids = None,
    backend: Backends = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 when not given, and bfloat16 on a GPU.")] = None,
    shape: Annotated[str | None, typer.Option(help="Only shapes whose name holds this text.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One shape per component, fewer rounds.")] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Older results (JSON lines, or a printed --json) to compare with.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="File that accumulates; build/results.jsonl when not given.")] = None,
    kernel: OwnKernel = None,
    op: ImplementedOp = None,
    simulator: Annotated[bool, typer.Option("--simulator", help="Time the serving simulator's loops instead.")] = False,
    json_output: Json = False,
) -> None:
    """Time components: every implementation side by side, as a fraction of the machine's limit. Exit code 1 if one is wrong.

    Libraries that choose slow code by the processor's vendor are shown as shipped and without that check (unlocked).
    """
    if simulator:
        from llmlab.harness.timing import simulator as loops

        with progress_bar("timing") as advance:
            timed = loops.run(quick=quick, progress=advance)
        emit({"simulator": timed}) if json_output else show("Serving simulator", loops.table(timed))
        return
    from llmlab.harness.check import bring
    from llmlab.harness.timing import bench

    only = bring(kernel, op, backend, ids)
    backends = None if kernel else backend
    with progress_bar("timing") as advance:
        report = bench.run(
            ids,
            backends=backends,
            dtypes=dtype,
            shape=shape,
            quick=quick,
            compare=compare,
            only=only,
            path=results,
            progress=advance,
        )
    if json_output:
        emit(report.as_dict())
    else:
        for title, rows in bench.tables(bench.table(report.records, report.skipped)):
            show(title, rows)
        for title, rows in bench.tables(bench.change_rows(report.changes)):
            show(f"{title}: against {compare}", rows)
        console().print(*report.remarks(), f"{len(report.records)} records added to {report.results}", sep="\n")
    if report.wrong:
        raise typer.Exit(1)


@app.command("calibrate")
def calibrate_command(
    tables: Annotated[
        Path | None, typer.Option(help="Folder of operator tables to fit instead of measuring this machine.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device the tables are of, such as h100; only with --tables.")] = None,
    out: Annotated[Path, typer.Option(help="Where the profile goes; `--gpu` of the simulator takes it.")] = Path(
        "machine.json"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes; only without --tables.")] = False,
    json_output: Json = False,
) -> None:
    """Measure this machine's operators and fit its efficiency curves; or fit a device's from operator tables."""
    if (tables is None) != (device is None):
        raise InputError("calibrate", "device", device, "--tables and --device belong together")
    with progress_bar("calibrate") as advance:
        if tables is not None and device is not None:
            from llmlab.harness.calibration.from_tables import calibrate_tables

            profile = calibrate_tables(tables, device, out=out, progress=advance)
        else:
            from llmlab.harness.calibration.here import calibrate_here

            profile = calibrate_here(out=out, quick=quick, progress=advance)
    if json_output:
        emit(profile.to_json() | {"out": str(out)})
        return
    rows = [
        {
            "curve": name,
            "form": curve.form,
            "shapes": curve.rows,
            "held-out mean error %": 100 * curve.held_out["mean_absolute_error"] if curve.held_out else "all fitted",
            "median %": 100 * curve.held_out["median_absolute_error"] if curve.held_out else "",
            "bias %": 100 * curve.held_out["bias"] if curve.held_out else "",
        }
        for name, curve in sorted(profile.curves.items())
    ]
    show(f"{profile.device.name}: error on the half of the shapes left out of the fit; profile in {out}", rows)


@validate_app.command("serving")
def validate_serving_command(
    runs: Annotated[
        list[Path],
        typer.Option(
            "--runs",
            help="CSV (or .csv.gz) of operating points, stages, single requests or engine steps, recognised by its columns; "
            "may be given several times.",
        ),
    ],
    core: Annotated[bool, typer.Option("--core", help="Only rows marked core: one node, dense Llama family.")] = False,
    limit: RowLimit = None,
    out_picture: Annotated[
        Path | None, picture("Draw the replayed runs of per-request files, measured against simulated")
    ] = None,
    json_output: Json = False,
) -> None:
    """Simulate every row of published serving measurements; predicted, measured, error, interval, and a summary."""
    from llmlab.harness.validation.measured_files import replay_tables, validate_files
    from llmlab.harness.validation.serving import summary_tables

    if out_picture is not None:
        from llmlab.reports.picture import check_picture

        check_picture(out_picture)
    with progress_bar("simulating") as advance:
        result = validate_files(runs, core=core, limit=limit, progress=advance)
    if out_picture is not None:
        if not result.get("replays"):
            raise InputError("validate serving", "out_picture", str(out_picture), "no run of single requests was replayed")
        from llmlab.reports.replay_figure import save_replays

        save_replays(result["replays"], out_picture)
    if json_output:
        emit(result)
    else:
        for title, rows in [*summary_tables(result), *replay_tables(result)]:
            show(title, rows)


@validate_app.command("papers")
def validate_papers_command(
    ids: Annotated[list[str] | None, typer.Argument(help="Which comparisons (P1, P4, ...); all when none are given.")] = None,
    json_output: Json = False,
) -> None:
    """Repeat relative results of published systems: sign, order, and the factor obtained. Nothing is fitted to them."""
    from llmlab.harness.validation.papers import validate_papers

    with progress_bar("repeating") as advance:
        rows = validate_papers(ids or (), advance)
    if json_output:
        emit({"rows": rows, "summary": {"findings": len(rows), "hold": sum(row["holds"] for row in rows)}})
    else:
        show("Relative results of published systems", rows)


DEPLOYMENT_OPTIONS = (
    "model",
    "gpu",
    "tp",
    "replicas",
    "scheduler",
    "router",
    "engine",
    "features",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_tokens",
    "gpu_memory_utilization",
    "prefix_caching",
    "weight_dtype",
    "kv_dtype",
    "price",
)


@simulate_app.command("serve")
def simulate_serve_command(
    context: typer.Context,
    workload: Annotated[Path, typer.Option(help="Trace (.csv, .csv.gz) or workload file (.yaml).")],
    model: Annotated[str | None, MODEL] = None,
    gpu: Annotated[str | None, typer.Option(help="Device name such as h100, or a profile made by `llmlab calibrate`.")] = None,
    deployment_file: Annotated[
        Path | None,
        typer.Option(
            "--deployment",
            help="Fleet as a file (.yaml): unequal pools, prefill and decode workers, failures, scaling. Replaces --model, "
            "--gpu and the other options of a deployment.",
        ),
    ] = None,
    tp: Annotated[int, typer.Option(help="Devices per replica (tensor parallel).")] = 1,
    replicas: Annotated[int, typer.Option(help="Equal copies behind the router.")] = 1,
    slo: Annotated[str | None, typer.Option(help="Objective, for goodput: ttft_p99=2s,tpot_p99=50ms.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="chunked_prefill, continuous_batching, static_batching, dynamic_batching, orca, sarathi, splitfuse, "
            "token_attention, guaranteed_no_evict, guaranteed_prefill_first, max_utilization, priority, shortest_job, "
            "virtual_token_counter, swapping, multi_lora or speculative; the engine's when not given."
        ),
    ] = None,
    router: Annotated[
        str, typer.Option(help="round_robin, random, least_outstanding, power_of_two, prefix_affinity or kv_aware.")
    ] = "least_outstanding",
    engine: Annotated[
        str,
        typer.Option(
            help="Whose host constants, scheduler, block size and limits: vllm, vllm-v0, sglang, trtllm, trtllm-v1, nim, tgi, "
            "lmdeploy, fastgen, orca, fastertransformer, lightllm, llamacpp, sarathi, generic, ..."
        ),
    ] = "vllm",
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            help="NAME=VALUE, may be repeated: swap_bytes, host_cache_bytes, disk_cache_bytes, disk_bytes_per_s, max_loras, "
            "lora_rank, drafter (draft, medusa, eagle, ngram), num_drafts, acceptance, draft_model, window_s.",
        ),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests a replica runs at once.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens of one step: the prefill chunk.")] = None,
    block_tokens: Annotated[int | None, typer.Option(help="Tokens of a KV block; the engine's when not given.")] = None,
    gpu_memory_utilization: MemoryPart = 0.9,
    prefix_caching: Annotated[
        bool | None,
        typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse the KV cache of equal prefixes; else the engine's."),
    ] = None,
    weight_dtype: Annotated[str, typer.Option(help="bfloat16, fp8, int8, int4, ...")] = "bfloat16",
    kv_dtype: Annotated[str, typer.Option(help="bfloat16, fp8, ...")] = "bfloat16",
    first: FirstRequests = None,
    rate_factor: RateFactor = 1.0,
    clients: Annotated[
        int | None, typer.Option(help="Closed loop: N clients send the same requests as they are answered.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="US dollars per device and hour; a dated default when not given.")] = None,
    seed: Seed = 0,
    out_requests: Annotated[Path | None, typer.Option(help="Write the per-request table (.csv or .parquet).")] = None,
    out_bench: Annotated[Path | None, typer.Option(help="Write the run as `vllm bench serve` saves one (.json).")] = None,
    trace: Timeline = None,
    plot: Annotated[Path | None, picture("Draw queue, running requests, KV use, replicas and power over time")] = None,
    path: Annotated[
        str, typer.Option(help="Loop that runs: auto, simpy (readable) or compiled (quick); the events are equal.")
    ] = "auto",
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--exact", help="Quantiles from sketches, or of every latency; above 200,000 requests from sketches."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Simulate a workload on a deployment: latencies, throughput, utilization, cost, energy; per-request table; timeline."""
    from llmlab.reports.cluster_state import save_state
    from llmlab.reports.picture import check_picture
    from llmlab.simulator.cost.extras import read_features
    from llmlab.simulator.serving.deployment import Deployment
    from llmlab.simulator.serving.fleet_file import read_fleet
    from llmlab.simulator.serving.pools import Fleet
    from llmlab.simulator.serving.run import describe, rows_of, run_files

    if plot is not None:
        check_picture(plot)
    deployment: Deployment | Fleet
    if deployment_file is not None:
        here = {name: context.get_parameter_source(name) for name in context.params}
        for name in DEPLOYMENT_OPTIONS:
            if (source := here.get(name)) is not None and source.name == "COMMANDLINE":
                value = context.params[name]
                raise InputError(
                    "simulate serve", f"--{name.replace('_', '-')}", value, "does not go together with --deployment"
                )
        deployment = read_fleet(deployment_file)
    elif model is None or gpu is None:
        raise InputError("simulate serve", "--model, --gpu", None, "are needed where there is no --deployment")
    else:
        stated: dict[str, Any] = {"scheduler": scheduler, "block_tokens": block_tokens, "prefix_caching": prefix_caching}
        deployment = Deployment(
            model,
            gpu,
            tp,
            replicas,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            engine=engine,
            router=router,
            price_usd_per_hour=price,
            features=read_features(features or ()),
            **{name: value for name, value in stated.items() if value is not None},
        )
    with progress_bar("simulating") as advance:
        result, objective = run_files(
            deployment,
            workload,
            slo=slo,
            first=first,
            rate_factor=rate_factor,
            clients=clients,
            seed=seed,
            out_requests=out_requests,
            out_bench=out_bench,
            trace=trace,
            states=plot is not None,
            loop=path,
            stream=stream,
            progress=lambda done, total: advance("requests", done, total),
        )
    if plot is not None:
        save_state(result, plot)
    if json_output:
        emit(describe(result, objective))
    else:
        for title, rows in rows_of(result, objective):
            show(title, rows)


@simulate_app.command("pipeline")
def simulate_pipeline_command(
    schedules: Annotated[
        list[str],
        typer.Option(
            "--schedule",
            help="naive, gpipe, 1f1b, interleaved, looped_bfs, pipedream, zb_h1, zb_h2, zb_1p, zb_2p, zb_v, v_half, v_min, "
            "dualpipe, dualpipe_v or chimera; may be repeated, to compare.",
        ),
    ],
    ranks: Annotated[int, typer.Option(help="Ranks of the pipeline.")] = 4,
    microbatches: Annotated[int, typer.Option(help="Microbatches of a step.")] = 8,
    virtual: Annotated[int, typer.Option(help="Virtual stages per rank: interleaved, looped_bfs.")] = 1,
    forward_ms: Annotated[float, typer.Option(help="Forward of a rank's whole part of the model, one microbatch.")] = 1.0,
    input_ms: Annotated[float, typer.Option(help="The same of the backward: gradient of the input.")] = 1.0,
    weight_ms: Annotated[float, typer.Option(help="The same of the backward: gradient of the weights.")] = 1.0,
    hand_over_ms: Annotated[float, typer.Option(help="From the end of a stage to the start of the next rank's.")] = 0.0,
    together: Annotated[
        float | None,
        typer.Option(help="Run a forward beside a backward, in this part of their summed time (DualPipe: 1 or less)."),
    ] = None,
    freed_by_input: Annotated[
        float, typer.Option(help="Part of an activation that the gradient of the input gives back; the other gives the rest.")
    ] = 0.0,
    plot: Annotated[Path | None, picture("Draw ranks over time")] = None,
    trace: Annotated[Path | None, perfetto("Write the timeline of the one schedule")] = None,
    path: Annotated[str, typer.Option(help="Loop that runs: compiled, or simpy (readable); the times are equal.")] = "compiled",
    json_output: Json = False,
) -> None:
    """Replay a pipeline schedule: bubble and activations beside their closed forms (JSON: a list where there are several)."""
    from llmlab.reports.picture import check_picture
    from llmlab.reports.pipeline_figure import save_pipeline
    from llmlab.simulator.training.replay import run_pipeline

    if plot is not None:
        check_picture(plot)
    if path not in ("compiled", "simpy"):
        raise InputError("simulate pipeline", "--path", path, "is neither compiled nor simpy")
    if trace is not None and len(schedules) > 1:
        raise InputError("simulate pipeline", "--trace", str(trace), "takes one schedule")
    times = {"forward_ms": forward_ms, "backward_input_ms": input_ms, "backward_weight_ms": weight_ms}
    times |= {"hand_over_ms": hand_over_ms}
    if together is not None and not any(name.startswith("dualpipe") for name in schedules):
        raise InputError("simulate pipeline", "--together", together, "only dualpipe and dualpipe_v run two actions together")
    single = len(schedules) == 1
    runs = [
        run_pipeline(
            name,
            ranks,
            microbatches,
            virtual if single or name in ("interleaved", "looped_bfs") else 1,
            together=together if name.startswith("dualpipe") else None,
            freed_by_input=freed_by_input,
            loop=path,
            **times,
        )
        for name in schedules
    ]
    if trace is not None:
        runs[0][0].write_trace(trace)
    if plot is not None:
        save_pipeline([timeline for timeline, _ in runs], plot)
    rows = [row for _, row in runs]
    if json_output:
        emit(rows[0] if len(rows) == 1 else rows)
    else:
        short = ("schedule", "makespan_ms", "bubble", "bubble_closed_form", "bubble_with_flush", "peak_activations")
        show(f"{ranks} ranks, {microbatches} microbatches", [{key: row[key] for key in short} for row in rows])


TRACE_HELP = (
    "Trace (Azure, BurstGPT, Mooncake; .csv, .jsonl), result of vllm bench serve, GuideLLM or inference-perf, ShareGPT "
    "conversations (.json), or workload file (.yaml); also .gz."
)


@validate_app.command("training")
def validate_training_command(
    runs: Annotated[
        list[Path], typer.Option("--runs", help="CSV (or .csv.gz) of published training runs; may be given several times.")
    ],
    limit: RowLimit = None,
    json_output: Json = False,
) -> None:
    """Predict every row of published training runs: step time or throughput and memory, errors, intervals, exclusions."""
    from llmlab.harness.validation.training import summary_tables, validate_training

    with progress_bar("predicting") as advance:
        result = validate_training(runs, limit=limit, progress=advance)
    if json_output:
        emit(result)
    else:
        for title, rows in summary_tables(result):
            show(title, rows)


@simulate_app.command("train")
def simulate_train_command(
    model: Model,
    gpu: Gpu,
    gpus: Annotated[int, typer.Option(min=1, help="Devices in all; data parallelism takes what the other degrees leave.")],
    global_batch: GlobalBatch,
    seq: SequenceTokens = 2048,
    tp: TensorParallel = 1,
    pp: PipelineStages = 1,
    cp: Annotated[int, typer.Option(min=1, help="Context-parallel degree.")] = 1,
    ep: Annotated[int, typer.Option(min=1, help="Expert-parallel degree.")] = 1,
    virtual_stages: Annotated[int, typer.Option(min=1, help="Chunks of layers per stage (interleaved schedule).")] = 1,
    microbatch: Microbatch = 1,
    framework: Framework = "megatron",
    schedule: Annotated[str | None, typer.Option(help="Pipeline schedule; the framework's where not given.")] = None,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage; the framework's where not given.")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective or full; the framework's where not given.")] = None,
    shard_over: Annotated[int, typer.Option(min=0, help="Ranks that ZeRO shards over; all of data parallelism where 0.")] = 0,
    precision: Annotated[str, typer.Option(help="bfloat16, float16, fp8, nvfp4 or float32.")] = "bfloat16",
    optimizer: Optimizer = "adam",
    offload: Annotated[bool, typer.Option("--offload", help="Optimizer state in host memory.")] = False,
    offload_weights: Annotated[bool, typer.Option("--offload-weights", help="Weights in host memory too (ZeRO-3).")] = False,
    tensor: Annotated[
        str | None, typer.Option(help="How tensor-parallel ranks share matrices: 1d, 2d, 2.5d, 3d; the framework's.")
    ] = None,
    tensor_depth: Annotated[int, typer.Option(min=1, help="Grids that share weights (2.5d).")] = 1,
    replay: Annotated[bool, typer.Option("--replay", help="Replay the schedule action by action.")] = False,
    topology: Annotated[
        Path | None, typer.Option(help="Nodes and links (YAML): collectives of all groups run on it at once.")
    ] = None,
    protocols: Protocols = "ideal",
    failure_gpu_hours: Annotated[
        float | None, typer.Option(help="Mean hours between failures of one device: adds the goodput of a long run.")
    ] = None,
    checkpoint_bytes_per_s: Annotated[float, typer.Option(help="Storage bandwidth of a checkpoint.")] = 50e9,
    restart_s: Annotated[float, typer.Option(help="Seconds from a failure until training goes on.")] = 600.0,
    jitter: Annotated[float, typer.Option(help="Spread of a rank's time from step to step, over its mean.")] = 0.0,
    device_spread: Annotated[float, typer.Option(help="Spread among devices, the same in every step, over their mean.")] = 0.0,
    slow_rank: Annotated[list[str] | None, typer.Option(help="RANK=FACTOR: this rank takes so many times as long.")] = None,
    load_s: Annotated[float, typer.Option(help="Seconds to load the batch of a step.")] = 0.0,
    prefetch: Annotated[int, typer.Option(help="Batches loaded ahead; 0 loads before each step.")] = 2,
    steps: Annotated[int, typer.Option(help="Steps drawn where they differ.")] = 200,
    seed: Seed = 0,
    tokens: Annotated[float | None, typer.Option(help="Tokens of a whole run: adds days, device hours, dollars, kWh.")] = None,
    plot: Annotated[Path | None, picture("Draw every stage over time")] = None,
    memory_plot: Annotated[Path | None, picture("Draw the fullest rank's memory over time")] = None,
    trace: Annotated[Path | None, perfetto("Write every rank's timeline and memory")] = None,
    json_output: Json = False,
) -> None:
    """Predict one training step: seconds, where each goes, tokens per second, MFU, memory of the fullest rank."""
    from llmlab.reports.memory_figure import save_memory
    from llmlab.reports.picture import check_picture
    from llmlab.reports.step_figure import save_step
    from llmlab.simulator.hardware.device import load_device_sheet
    from llmlab.simulator.model.description import load_model
    from llmlab.simulator.tracing import check_trace, write_trace
    from llmlab.simulator.training.failures import long_run
    from llmlab.simulator.training.memory_over_time import by_layer, fullest_of, memory_over_time
    from llmlab.simulator.training.network import TopologyNetwork
    from llmlab.simulator.training.plan import dp_of, plan_of
    from llmlab.simulator.training.run_cost import run_cost, step_cost
    from llmlab.simulator.training.step import predict_step, tables
    from llmlab.simulator.training.step_timeline import step_timeline
    from llmlab.simulator.training.stragglers import Variation, first_step_factors, parse_slow_ranks, simulate_steps
    from llmlab.simulator.training.topology import read_topology

    for picture in (plot, memory_plot):
        if picture is not None:
            check_picture(picture)
    if trace is not None:
        check_trace(trace)

    plan = plan_of(
        framework,
        dp=dp_of(gpus, tp, pp, cp),
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        virtual_stages=virtual_stages,
        microbatch=microbatch,
        global_batch=global_batch,
        sequence=seq,
        recompute=recompute,
        precision=precision,
        zero_stage=zero,
        schedule=schedule or ("interleaved" if virtual_stages > 1 else None),
        offload=offload,
        shard_over=shard_over,
        optimizer=optimizer,
        offload_weights=offload_weights,
        tensor=tensor,
        tensor_depth=tensor_depth,
    )
    described = load_model(model)
    network = TopologyNetwork.on(read_topology(topology), plan.gpus, protocols) if topology is not None else None
    step = predict_step(described, plan, gpu, network=network, replayed=replay)
    settings = {"checkpoint_bytes_per_s": checkpoint_bytes_per_s, "restart_s": restart_s}
    hours = failure_gpu_hours
    run = long_run(described.parameters, gpus, gpu_hours_apart=hours, **settings) if hours is not None else None
    more = {"energy": step_cost(step, gpu).to_json()} | ({"long_run": run} if run else {})
    layers = by_layer(described, plan)[1]
    if tokens is not None:
        more["run"] = run_cost(step, gpu, tokens, run["useful"] if run else 1.0)
    varied = Variation(jitter, device_spread, parse_slow_ranks(slow_rank or ()), load_s=load_s, prefetch=prefetch)
    if varied != Variation(prefetch=prefetch):
        more["steps"] = simulate_steps(step, varied, steps, seed).to_json()
    if any(file is not None for file in (plot, memory_plot, trace)):
        timeline = step_timeline(step, first_step_factors(step, varied, seed))
        held = memory_over_time(described, plan, timeline.pipelines[0])
        if trace is not None:
            counters = (event for one in held for event in one.trace_events(timeline.ranks(0, one.rank)[0]))
            write_trace(trace, (*timeline.trace_events(), *counters))
        if plot is not None:
            save_step(timeline, plot)
        if memory_plot is not None:
            device = load_device_sheet(gpu)
            save_memory(fullest_of(held), device.hbm_bytes, f"{described.name} on {gpus} {device.name}", memory_plot)
    if json_output:
        emit(step.to_json() | {"memory_by_layer": layers} | more)
    else:
        titles = {
            "energy": "Energy and price of a step (an estimate)",
            "run": "The whole run",
            "long_run": "A long run with failures",
            "steps": f"{steps} steps that differ",
        }
        by_part = ("Of it, bytes of each layer and end", layers)
        for title, rows in [*tables(step), by_part, *((titles[name], [row]) for name, row in more.items())]:
            show(title, rows)


@simulate_app.command("network")
def simulate_network_command(
    topology: Annotated[Path, typer.Option(help="Nodes, links and how they are joined (YAML).")],
    collective: Annotated[str, typer.Option(help="all_reduce, reduce_scatter, all_gather, broadcast, all_to_all or send.")],
    size: Annotated[float, typer.Option("--bytes", help="Bytes of the whole array of one group.")],
    ranks: Annotated[str, typer.Option(help="Devices: a count, a range 0-15, a list 0,8,16, or all.")] = "all",
    groups: Annotated[int, typer.Option(min=1, help="Equal parts of the ranks that run the same at the same time.")] = 1,
    layout: Annotated[str, typer.Option(help="Groups of consecutive ranks, or strided.")] = "consecutive",
    algorithm: Annotated[str, typer.Option(help="ring, tree, double_binary_tree, ...; the quickest predicted.")] = "auto",
    protocols: Protocols = "ideal",
    slow_link: Annotated[str | None, typer.Option(help="FROM>TO=FACTOR: this link is so many times slower.")] = None,
    plot: Annotated[Path | None, picture("Draw who sends and how full links are")] = None,
    trace: Annotated[Path | None, perfetto("Write the flows")] = None,
    json_output: Json = False,
) -> None:
    """Run a collective on a topology whose links are shared: seconds beside the closed form, algorithms, busiest links."""
    from llmlab.reports.network_figure import save_network
    from llmlab.reports.picture import check_picture
    from llmlab.simulator.tracing import check_trace, write_trace
    from llmlab.simulator.training.programs import parse_ranks, run_collective, tables
    from llmlab.simulator.training.topology import read_topology

    if plot is not None:
        check_picture(plot)
    if trace is not None:
        check_trace(trace)
    links = read_topology(topology)
    if slow_link is not None:
        links = links.slowed_by(slow_link)
    done, figures = run_collective(
        links,
        collective,
        size,
        parse_ranks(links, ranks),
        groups=groups,
        layout=layout,
        algorithm=algorithm,
        protocols=protocols,
        record=plot is not None,
    )
    if trace is not None:
        write_trace(trace, done.trace_events())
    if plot is not None:
        save_network(done, f"{collective} by {figures['algorithm']} on {links.name}", plot)
    if json_output:
        emit(figures)
    else:
        for title, rows in tables(figures):
            show(title, rows)


@simulate_app.command("rlhf")
def simulate_rlhf_command(
    model: Model,
    gpu: Gpu,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that train (and write, where colocated).")],
    tp: TensorParallel = 1,
    pp: PipelineStages = 1,
    microbatch: Microbatch = 1,
    framework: Framework = "megatron",
    placement: Annotated[str, typer.Option(help="colocated, or separate pools.")] = "colocated",
    writer_gpus: Annotated[int, typer.Option(help="Devices of the pool that writes responses.")] = 0,
    writer_tp: Annotated[int, typer.Option(help="Devices of one serving replica.")] = 1,
    staleness: Annotated[int, typer.Option(help="Steps the writers may be ahead (separate pools).")] = 0,
    prompts: Annotated[int, typer.Option(help="Prompts of a step.")] = 128,
    samples: Annotated[int, typer.Option(help="Responses to each.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Of every prompt.")] = 512,
    response_tokens: Annotated[float, typer.Option(help="Mean length of a response.")] = 1024.0,
    response_spread: Annotated[float, typer.Option(help="Spread of lengths over their mean.")] = 0.5,
    max_response_tokens: Annotated[int, typer.Option(help="Where writing stops.")] = 8192,
    updates: Annotated[int, typer.Option(help="Optimizer steps a batch is split into.")] = 1,
    epochs: Annotated[int, typer.Option(help="Times a batch is gone over.")] = 1,
    reference: Annotated[bool, typer.Option(help="A reference model scores.")] = True,
    reward: Annotated[bool, typer.Option(help="A reward model scores.")] = True,
    critic: Annotated[bool, typer.Option(help="A critic scores and is trained.")] = False,
    offload: Annotated[bool, typer.Option(help="Optimizer state waits in host memory while responses are written.")] = True,
    engine: Annotated[str, typer.Option(help="Serving engine.")] = "vllm",
    steps: Annotated[int, typer.Option(help="Steps to simulate.")] = 6,
    seed: Annotated[int, typer.Option(help="Of response lengths.")] = 0,
    plot: Annotated[Path | None, picture("Draw the pools over time")] = None,
    trace: Timeline = None,
    json_output: Json = False,
) -> None:
    """Simulate reinforcement learning: write responses, score, train; where the time goes, on one pool or two."""
    from llmlab.reports.picture import check_picture
    from llmlab.reports.rlhf_figure import save_rlhf
    from llmlab.simulator.model.description import load_model
    from llmlab.simulator.tracing import check_trace, write_trace
    from llmlab.simulator.training.plan import dp_of, plan_of
    from llmlab.simulator.training.rlhf import Rlhf, simulate_rlhf, tables

    if plot is not None:
        check_picture(plot)
    if trace is not None:
        check_trace(trace)
    setting = Rlhf(
        prompts=prompts,
        samples=samples,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        response_spread=response_spread,
        max_response_tokens=max_response_tokens,
        placement=placement,
        writer_gpus=writer_gpus,
        writer_tp=writer_tp,
        staleness=staleness,
        offload=offload,
        updates=updates,
        epochs=epochs,
        reference=reference,
        reward=reward,
        critic=critic,
        engine=engine,
    )
    plan = plan_of(framework, dp=dp_of(gpus, tp, pp, 1), tp=tp, pp=pp, microbatch=microbatch)
    found = simulate_rlhf(load_model(model), plan, gpu, setting, steps=steps, seed=seed)
    if trace is not None:
        write_trace(trace, found.trace_events())
    if plot is not None:
        save_rlhf(found, plot)
    if json_output:
        emit(found.to_json())
    else:
        for title, rows in tables(found):
            show(title, rows)


@workload_app.command("describe")
def workload_describe_command(
    trace: Annotated[Path, typer.Argument(help=TRACE_HELP)],
    seed: Annotated[int, typer.Option(help="Of the draws of a workload file.")] = 0,
    json_output: Json = False,
) -> None:
    """Rate, burstiness at 1, 10 and 60 s, lengths, shared prefixes."""
    from llmlab.simulator.workload.fit import flat
    from llmlab.simulator.workload.spec import load_workload
    from llmlab.simulator.workload.statistics import describe

    workload = load_workload(trace, seed)
    found = describe(workload)
    if json_output:
        emit({"workload": workload.name} | found)
    else:
        show(workload.name, [{"statistic": k, "value": "-" if v is None else v} for k, v in flat(found).items()])


@workload_app.command("fit")
def workload_fit_command(
    trace: Annotated[Path, typer.Argument(help=TRACE_HELP)],
    out: Annotated[Path | None, typer.Option(help="Write the workload file here (.yaml).")] = None,
    plot: Annotated[Path | None, picture("Draw trace and synthetic twin")] = None,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Fit a small workload file: its synthetic traffic has the trace's rate, burstiness, lengths and prefix sharing."""
    from llmlab.reports.picture import check_picture
    from llmlab.reports.workload_figure import save_workload
    from llmlab.simulator.workload.fit import fit_workload
    from llmlab.simulator.workload.spec import WorkloadSpec, load_workload, make_workload
    from llmlab.simulator.workload.statistics import spread_over_grid

    if plot is not None:
        check_picture(plot)
    workload = load_workload(trace, seed)
    with progress_bar("fitting") as advance:
        found = fit_workload(workload, seed=seed, progress=advance)
    if out is not None:
        found.write(out)
    if plot is not None:
        twin = make_workload(WorkloadSpec.model_validate(found.content), seed, trace)
        save_workload([(workload.name, spread_over_grid(workload, seed)[0]), ("synthetic twin", twin)], plot)
    if json_output:
        emit({"workload": workload.name, "fit": found.content, "statistics": found.rows(), "notes": list(found.notes)})
        return
    show(
        f"{workload.name}: trace and synthetic twin",
        [{k: "-" if v is None else v for k, v in row.items()} for row in found.rows()],
    )
    for note in found.notes:
        console().print(f"Note: {note}.")
    console().print(f"Written: {out}" if out is not None else "Nothing written; --out FILE.yaml keeps the fit.")


@plan_app.command("serve")
def plan_serve_command(
    model: Model,
    workload: Annotated[Path, typer.Option(help="Trace (.csv, .csv.gz) or workload file (.yaml); or a shipped one by name.")],
    slo: Annotated[str, typer.Option(help="Objective: METRIC_STATISTIC=AMOUNT, ... as in ttft_p99=2s,tpot_p99=50ms.")],
    gpu: Annotated[str, typer.Option(help="Devices to choose from, separated by commas: h100,h200.")],
    max_gpus: Annotated[int, typer.Option(help="Largest number of devices.")] = 64,
    price: Annotated[
        str | None, typer.Option(help="US dollars per device and hour: h100=2.5,h200=3.6; dated defaults.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose host constants (vllm, sglang, trtllm, nim, generic; vllm when not given), or where the search runs: "
            "local processes (when not given) or ray, at RAY_ADDRESS or a cluster of its own. May be given twice.",
        ),
    ] = None,
    weight_dtype: Annotated[str, typer.Option(help="bfloat16, fp8, int4, ...; several by commas to choose from.")] = "bfloat16",
    kv_dtype: Annotated[str, typer.Option(help="bfloat16, fp8, ...; several by commas.")] = "bfloat16",
    scheduler: Annotated[str, typer.Option(help="Schedulers to choose from, by commas.")] = "chunked_prefill",
    router: Annotated[str, typer.Option(help="Routers to choose from, by commas.")] = "least_outstanding",
    layouts: Annotated[
        bool, typer.Option(help="Also try experts dealt to the devices, and requests where attention is latent.")
    ] = True,
    pipeline: Annotated[str, typer.Option(help="Pipeline stages to try, by commas.")] = "1",
    max_num_seqs: Annotated[str, typer.Option(help="Batch sizes to try.")] = "32,64,128,256,512",
    max_num_batched_tokens: Annotated[str, typer.Option(help="Tokens of one step to try.")] = "512,1024,2048,4096,8192",
    gpu_memory_utilization: MemoryPart = 0.9,
    prefix_caching: Annotated[bool, typer.Option(help="Reuse the KV cache of equal prefixes.")] = True,
    rate_factor: RateFactor = 1.0,
    first: FirstRequests = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(help="Processes; the answer does not depend on it.")] = 2,
    store: Annotated[
        Path | None, typer.Option(help="Keep every simulated option here; a search that was stopped goes on from it.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Where the time goes, headroom, sensitivity: some 40 simulations more.")] = True,
    out_picture: Annotated[Path | None, picture("Draw the plan")] = None,
    json_output: Json = False,
) -> None:
    """Find the cheapest deployment that keeps an objective: what binds, how to start it. Exit code 1 if none does.

    Every option (device, tensor parallelism, dtypes, scheduler, router, batch and chunk size, replicas) is considered: lower
    bounds exclude most, the rest is simulated in order of price. The answer is the one an exhaustive search would give, but
    for options that miss a limit three times over on the busiest stretch: those are not tried on the whole workload.
    """
    from llmlab.reports.picture import check_picture
    from llmlab.simulator.serving.answer import tables
    from llmlab.simulator.serving.plan import plan, read_prices, read_sizes, where_to_run
    from llmlab.simulator.serving.run import read_workload
    from llmlab.simulator.serving.slo import parse_slo
    from llmlab.simulator.workload.shipped import find_workload

    if out_picture is not None:
        check_picture(out_picture)
    objective, prices, (serving, run_on) = parse_slo(slo), read_prices(price), where_to_run(engine or ())
    sizes = read_sizes(max_num_seqs, "--max-num-seqs"), read_sizes(max_num_batched_tokens, "--max-num-batched-tokens")
    load = read_workload(find_workload(workload), first=first, rate_factor=rate_factor, seed=seed)
    with progress_bar("planning:") as advance:
        found = plan(
            model,
            load,
            objective,
            [name.strip() for name in gpu.split(",") if name.strip()],
            max_gpus=max_gpus,
            prices=prices,
            engine=serving,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            scheduler=scheduler,
            router=router,
            layouts=layouts,
            pipeline=read_sizes(pipeline, "--pipeline"),
            num_seqs=sizes[0],
            chunks=sizes[1],
            gpu_memory_utilization=gpu_memory_utilization,
            prefix_caching=prefix_caching,
            seed=seed,
            workers=workers,
            run_on=run_on,
            store=store,
            explained=explain,
            progress=advance,
        )
    if out_picture is not None:
        from llmlab.reports.cost_front import save_cost_front

        save_cost_front(found.to_json(), out_picture)
    if json_output:
        emit(found.to_json())
    else:
        for title, rows in tables(found):
            show(title, rows)
        console().print(*found.sentences(), sep="\n", soft_wrap=True, markup=False, highlight=False)
    if found.chosen is None:
        raise typer.Exit(1)


@plan_app.command("train")
def plan_train_command(
    model: Model,
    gpus: Annotated[int, typer.Option(min=1, help="Devices in all.")],
    global_batch: GlobalBatch,
    seq: SequenceTokens,
    gpu: Gpu = "h100",
    framework: Framework = "megatron",
    precision: Annotated[
        str, typer.Option(help="Precisions to choose from, by commas: bfloat16, float16, fp8, nvfp4, float32.")
    ] = "bfloat16",
    schedule: Annotated[
        list[str] | None, typer.Option(help="Pipeline schedule to consider; may be repeated. All where not given.")
    ] = None,
    optimizer: Optimizer = "adam",
    offload: Annotated[
        str, typer.Option(help="What may live in host memory, by commas: none, optimizer, all (weights too).")
    ] = "none,optimizer",
    top: Annotated[int, typer.Option(min=1, help="Plans to show.")] = 5,
    json_output: Json = False,
) -> None:
    """Search every plan that fits for the quickest step; explain the winner, price the runners-up, print launch flags."""
    from llmlab.simulator.model.description import load_model
    from llmlab.simulator.training.search import SEARCHED, Choices, search, tables

    choices = Choices(tuple(schedule or SEARCHED), tuple(precision.split(",")), optimizer, tuple(offload.split(",")))
    with progress_bar("screening") as advance:
        result = search(
            load_model(model),
            gpu,
            gpus,
            global_batch,
            seq,
            name=framework,
            choices=choices,
            keep=top,
            progress=lambda done, total: advance("plans", done, total),
        )
    if json_output:
        emit(result.to_json())
    else:
        for title, rows in tables(result):
            show(title, rows)


@validate_app.command("here")
def validate_here_command(
    quick: Annotated[bool, typer.Option("--quick", help="Three short loads instead of five: about 1.5 minutes.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Requests to draw from; the Azure trace in LLMLAB_DATA or ones like it when not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, prompts and draws.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads the engine computes with; all when not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    model: Annotated[
        str, typer.Option(help="Dense Llama-family preset or config.json; weights are random.")
    ] = "llmlab/llama-100m",
    profile: Annotated[
        Path | None, typer.Option(help="Predict from this file of `llmlab calibrate` instead of timing the engine's steps.")
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Training steps of two processes under eight plans instead of a serving engine.")
    ] = False,
    plot: Annotated[Path | None, picture("With --training: predicted pipelines above measured ones")] = None,
    timeline: Annotated[Path | None, perfetto("With --training: write what the last pipeline did")] = None,
    speculation: Annotated[
        bool, typer.Option("--speculation", help="Instead: speed-up of speculative decoding against the acceptance rate.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Calibrate this machine, predict runs of a real engine at several loads, run them, and compare (about 4 minutes)."""
    if training:
        validate_training_here(quick=quick, seed=seed, plot=plot, timeline=timeline, json_output=json_output)
        return
    for option, given in (("--plot", plot), ("--timeline", timeline)):
        if given is not None:
            raise InputError("validate here", option, str(given), "shows pipelines: needs --training")
    if speculation:
        validate_speculation_here(seed=seed, json_output=json_output)
        return
    from llmlab.harness.validation.here import tables, validate_here

    with progress_bar("engine") as advance:
        result = validate_here(
            quick=quick,
            progress=advance,
            trace=trace,
            seed=seed,
            threads=threads,
            device=device,
            model=model,
            profile=profile,
        )
    if json_output:
        emit(result)
    else:
        for title, rows in tables(result):
            show(title, rows)


def validate_speculation_here(*, seed: int, json_output: bool) -> None:
    """Speed-up of speculative decoding against the acceptance rate, on the real engine and predicted."""
    from llmlab.harness.validation.speculation import tables, validate_speculation

    with progress_bar("engine") as advance:
        result = validate_speculation(seed=seed, progress=advance)
    if json_output:
        emit(result)
    else:
        for title, rows in tables(result):
            show(title, rows)


def validate_training_here(*, quick: bool, seed: int, plot: Path | None, timeline: Path | None, json_output: bool) -> None:
    """Predict training steps of two processes here, run them, and compare."""
    from llmlab.harness.validation.here_training import tables, validate_here_training
    from llmlab.reports.picture import check_picture
    from llmlab.reports.pipeline_figure import save_pipeline
    from llmlab.simulator.tracing import check_trace

    if plot is not None:
        check_picture(plot)
    if timeline is not None:
        check_trace(timeline)
    with progress_bar("trainer") as advance:
        found = validate_here_training(quick=quick, seed=seed, progress=advance)
    if plot is not None:
        save_pipeline(found.timelines, plot)
    if timeline is not None:
        found.timelines[-1].write_trace(timeline)
    if json_output:
        emit(found.result)
    else:
        for title, rows in tables(found.result):
            show(title, rows)


@app.command("report")
def report_command(
    out: Annotated[Path, typer.Option(help="The page; report.json is written beside it.")] = Path("report.html"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rows and shorter loads: about a third of the time.")] = False,
    slo: Annotated[
        str, typer.Option(help="Promise of the capacity plan: METRIC_STATISTIC=AMOUNT, ...")
    ] = "ttft_p99=2s,tpot_p99=50ms",
    json_output: Json = False,
) -> None:
    """Run everything once on this machine and write one page: checks, speed, calibration, predictions, accuracy, plan."""
    from llmlab.harness.full_run import full_run
    from llmlab.reports.page import write_page

    if out.suffix not in (".html", ".htm"):
        raise InputError("report", "--out", str(out), "must end in .html")
    with progress_bar("report:") as advance:
        result = full_run(quick=quick, slo=slo, progress=advance)
    written = write_page(result, out)
    if json_output:
        emit(result)
    else:
        show("seconds per part", [{"part": name, "seconds": seconds} for name, seconds in result["seconds"].items()])
        console().print(
            f"wrote {written} in {result['wall_s'] / 60:.1f} minutes", soft_wrap=True, markup=False, highlight=False
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except InputError as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own usage errors
            print(f"llmlab: {error.format_message()}", file=sys.stderr)
            return int(error.exit_code)
        raise
    if code == INTERRUPTED:
        print("llmlab: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0  # outside standalone mode the exit code of typer.Exit is returned


if __name__ == "__main__":
    sys.exit(main())
