"""`dsd-trt eval`: accuracy of a bundle or a model on a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import click

from dsd_trt.commands.destination import Destination, destination_options
from dsd_trt.commands.environment import SettingsCommand, on_command_line, setting
from dsd_trt.commands.log import note, say
from dsd_trt.commands.opening import Opening, opening_options
from dsd_trt.commands.options import Share, mode_option, seed_option
from dsd_trt.errors import InputError
from dsd_trt.files.lock import own_folder
from dsd_trt.train.commands.adapters import (
    OWN,
    adapter_option,
    chosen_adapter,
    require_base,
    sentence,
)
from dsd_trt.train.commands.data_options import data_options, fraction_option

if TYPE_CHECKING:
    from dsd_trt.tables.columns import ColumnNames
    from dsd_trt.tables.labelled import LabelledPair

EXAMPLES = """\b
Examples:
  dsd-trt eval my-scorer --data shapes-comvg --limit 500
  dsd-trt eval my-scorer --data comvg --root data/comvg --out results/
  dsd-trt eval my-scorer --data labelled.csv --threshold 0.8 -o figures.json
  dsd-trt eval my-scorer --data labelled.csv -o answers.html
  dsd-trt eval sd-2-1/ --adapter adapter/ --data refcocog --root data/coco -f json
"""


_OF_BUNDLES = (
    *("engine", "device", "memory_budget", "cache_compiled", "text_cache"),
    "require_signature",
)
"""Parameters that a model does not have."""


class _Evaluate(SettingsCommand):
    """The command, which reads settings about bundles and engines for a bundle alone."""

    def unread(self, given: Mapping[str, Any]) -> Collection[str]:
        """Parameters of bundles, if a model is named."""
        from dsd_trt.bundle.place import names_bundle

        return () if names_bundle(given["scorer"]) else _OF_BUNDLES


@click.command(cls=_Evaluate, epilog=EXAMPLES)
@click.argument("scorer", metavar="BUNDLE|MODEL")
@data_options
@fraction_option(
    "Share of the data set reserved for few-shot training, and excluded from the test.", "0"
)
@click.option("--limit", type=click.IntRange(1), help="Maximum number of test questions.")
@opening_options
@click.option(
    "--text-cache",
    **setting("TEXT_CACHE"),
    type=click.FloatRange(0, 2**30, max_open=True),
    metavar="MIB",
    help="Memory for texts of earlier questions, in MiB, which are not encoded again; 0 keeps "
    "none.  [default: 128]",
)
@mode_option(
    "Mode of scoring, as for `score`: one pass per pair and level, or one walk per image and level."
)
@adapter_option("Few-shot adapter of a MODEL; a BUNDLE contains its own")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Output folder for table.md, figures.json and figures.png; an interrupted run resumes "
    "from the answers in it.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=Share(0, 1),
    multiple=True,
    default=(0.5,),
    metavar="P",
    show_default=True,
    help="Of a table: report precision and recall of the pairs whose probability is at least P; "
    "may be repeated.",
)
@destination_options
@seed_option("Random seed of the split and of the wrong candidates.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    scorer: str,
    data: str,
    root: Path,
    opening: Opening,
    columns: ColumnNames,
    images_at: Path | None,
    fraction: float | None,
    limit: int | None,
    text_cache: float | None,
    mode: Literal["auto", "pair", "matrix"],
    adapter: str,
    out: Path | None,
    thresholds: tuple[float, ...],
    destination: Destination,
    seed: int,
) -> None:
    """Measure the accuracy of a bundle, or of a model in PyTorch, on test questions.

    Of a table's labelled pairs also ROC AUC, average precision, calibration error, and precision
    and recall at thresholds are reported; calibration and thresholds need a BUNDLE with match
    probabilities. A BUNDLE needs no PyTorch.

    A tie counts as a wrong answer. The right candidate is at a random position. Questions with an
    unreadable image are left out and counted, and the exit code is then 3. MODEL is a folder in
    diffusers' format, FILE.safetensors[@FAMILY], ORG/NAME[@REVISION] on the Hugging Face Hub, or
    "shapes", the demonstration's model. Its bundle is the folder that `dsd-trt inspect shapes`
    names. ORG/NAME is a BUNDLE if it has a bundle.json.
    """
    from dsd_trt.train.data.catalogue import require_columns

    require_columns(data, root, columns)  # before anything else is imported

    from dsd_trt.bundle.place import EMBEDDED, bundle_folder, names_bundle
    from dsd_trt.commands.output import refuse_input
    from dsd_trt.commands.provenance import scoring_facts, versions
    from dsd_trt.files.folders import require_writable
    from dsd_trt.train.data.catalogue import open_dataset, table_path
    from dsd_trt.train.diffusion.place import EMBEDDED as SHAPES
    from dsd_trt.train.diffusion.place import find_place, require_model
    from dsd_trt.train.run_key import refuse_another
    from dsd_trt.train.scoring.choices import require_matrix

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    if out:
        require_writable(out)
    destination.require_possible()
    is_bundle = names_bundle(scorer)
    file = None
    if is_bundle and adapter != OWN:
        raise InputError(f"{scorer} is a bundle, which contains its adapter: omit --adapter")
    if is_bundle and opening.names_engine:  # auto would import an engine
        opening.require_possible()
    if not is_bundle:
        if on_command_line(ctx, "require_signature"):
            raise InputError(
                f"{scorer} is a model, and only bundles are signed: omit --require-signature"
            )
        if on_command_line(ctx, *(it for it in _OF_BUNDLES if it != "require_signature")):
            raise InputError(
                f"{scorer} is no bundle, and a model runs in PyTorch: omit --engine, --device, "
                "--memory-budget, --cache-compiled and --text-cache"
            )
        file = chosen_adapter(adapter, scorer)
        if file is not None and mode == "matrix":
            require_matrix(file.config.score, file.config.head_mode, "score with --mode pair")
        require_model(place := find_place(scorer))
        require_base(file, place)
    questions = open_dataset(data, root, "test", seed, limit, fraction, columns, images_at)
    questions.require_some("test questions")
    # More questions of the same may be asked: the limit is no part of the key.
    about_data = {"data": data, "fraction": questions.fraction, "seed": seed}
    kept = ("answers.jsonl", "scores.jsonl", "figures.json")
    if out:
        refuse_another(out, about_data, kept, partial=True)
    labelled: tuple[LabelledPair, ...] = ()
    if questions.table:
        from dsd_trt.train.data.labelled import labelled_pairs

        labelled = labelled_pairs(
            table_path(data, root), columns, questions, seed, limit, images_at
        )
    if destination.output and questions.table:
        refuse_input(str(destination.output), [table_path(data, root)])
    destination.require_form()

    if not is_bundle:
        from dsd_trt.train.run.libraries import hush_libraries

        hush_libraries()
    from dsd_trt.train.commands.left_out import asked, report_left_out
    from dsd_trt.train.evaluation.answers import Expect, ask, expect_nothing
    from dsd_trt.train.evaluation.by_bundle import BundleScore
    from dsd_trt.train.evaluation.confusions import AskedTexts
    from dsd_trt.train.evaluation.figures import as_text, count_left_out, figures, to_json, write
    from dsd_trt.train.evaluation.page import Asked
    from dsd_trt.train.evaluation.pairs import PairScores
    from dsd_trt.train.question import Score
    from dsd_trt.train.run.progress import StageProgress
    from dsd_trt.train.run_key import bundle_identity, claim, model_key

    for line in questions.lines() if questions.table else ():  # of others known at the end
        note(line)
    with StageProgress() as progress:
        score: Score
        expect: Expect = expect_nothing
        if is_bundle:
            progress.begin("opening the bundle")
            opened = opening.scorer(bundle_folder(scorer), mode, text_cache_mb=text_cache)
            bundle_score = ctx.with_resource(BundleScore(opened))
            score, expect = bundle_score, bundle_score.expect
            computed_by = f"{opened.engine}; {opened.mode} mode"
            of = bundle_identity(opened) if out else {}
        else:
            from dsd_trt.train.evaluation.by_model import by_model
            from dsd_trt.train.run.threads import computing_with

            ctx.with_resource(computing_with(opening.threads))
            folder = None if file is None else file.folder
            if scorer == SHAPES:
                bundle = quote(str(EMBEDDED))
                note(f"shapes is the model, in PyTorch; its bundle: dsd-trt eval {bundle}")
            note(sentence(file, adapter))
            if file is not None and file.config.training.get("data") == data:
                say(f"the adapter learned from {data}: measure on what it has not seen")
            progress.begin("reading the model")
            score = by_model(scorer, folder, mode=None if mode == "auto" else mode)
            computed_by = "PyTorch FP32"
            note(f"engine: {computed_by}")
            of = model_key(scorer, folder, mode) if out else {}
        if out:
            ctx.with_resource(own_folder(out))
            claim(out, {**of, **about_data}, kept)
        pairs = None
        if labelled:
            pairs = PairScores(
                score,
                labelled,
                out and out / "scores.jsonl",
                lambda done: progress.step("scoring pairs", done, len(labelled)),
                expect,
            )
            score, expect = pairs, expect_nothing
        progress.step("asking questions", 0, questions.total)
        noted, texts = Asked(), AskedTexts()
        answers = list(
            ask(
                texts.through(noted.through(questions) if destination.has_page else questions),
                score,
                out and out / "answers.jsonl",
                lambda answered: progress.step("asking questions", answered, questions.total),
                expect,
            )
        )
    for line in () if questions.table else questions.lines():
        note(line)
    rows, left_out = figures(answers, seed), count_left_out(answers)
    note(asked(len(answers), questions.images, left_out))
    left_out.require_some(len(rows), f"test questions of {data}")
    about = {
        "scorer": scorer,
        "data": data,
        "adapter": None if file is None else str(file.folder),
        "fraction": questions.fraction,
        "limit": limit,
        "seed": seed,
        "engine": computed_by,
    }
    summary = None
    if pairs is not None and pairs.pairs:
        calibration = None
        if is_bundle and not opened.why_no_probability():
            calibration = opened.manifest.calibration_of(opened.mode)
        summary = pairs.summary(calibration, thresholds, seed)
        left_out.merge(0, pairs.failures)
        if calibration is None:
            say(
                opened.why_no_probability()
                if is_bundle
                else "thresholds are for a bundle's "
                "probabilities: export the model, then measure the bundle"
            )
    title, confused = f"{Path(scorer).name} on {data}", texts.confusions(answers)
    if out:
        write(out, rows, about, title, left_out, summary, confused)

    def facts() -> dict[str, str]:
        """What a page says of the evaluation."""
        own = {name: str(it) for name, it in about.items() if it is not None}
        return own | (scoring_facts(opened) if is_bundle else {"versions": versions()})

    destination.write(
        lambda: as_text(rows, left_out, computed_by, summary, confused),
        lambda: to_json(rows, about, left_out, summary, confused),
        lambda: noted.page(
            title, answers, rows, [*left_out.failures, *questions.failures], summary, facts()
        ),
    )
    report_left_out(ctx, left_out, questions.failures)
