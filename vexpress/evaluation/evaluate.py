"""From pairs of videos to a report."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, Problem
from vexpress.evaluation.faces import load_analyzer
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.evaluation.measure import Networks, PairMeasures, measure_pair
from vexpress.evaluation.mouth import MouthMeter
from vexpress.evaluation.pictures import save_pictures
from vexpress.evaluation.report import Report, save_report
from vexpress.evaluation.rows import build_group_rows, build_rows
from vexpress.evaluation.settings import Settings
from vexpress.files import hash_file
from vexpress.network_files import is_script
from vexpress.syncnet import PLACES as SYNCNET_PLACES
from vexpress.syncnet import load_syncnet

logger = logging.getLogger(__name__)

NETWORK_PLACES = {
    "fid_network": ("evaluation/fid.safetensors", "evaluation/fid.pt", "evaluation/inception-2015-12-05.pt"),
    "fvd_network": ("evaluation/fvd.safetensors", "evaluation/fvd.pt", "evaluation/i3d_torchscript.pt"),
    "syncnet_path": SYNCNET_PLACES,
    "insightface_model_path": ("insightface_models",),
}
"""Option -> where in a model folder its file may lie."""
FEATURES = {"fid_network": ("FID", FrameFeatures), "fvd_network": ("FVD", ClipFeatures)}


def find_networks(model_dir: Path | None, **given: str | None) -> dict[str, Path | None]:
    """Finds the files of NETWORK_PLACES: those given, else those in the model folder, else None."""
    found: dict[str, Path | None] = {}
    for field, places in NETWORK_PLACES.items():
        candidates = [model_dir / place for place in places] if model_dir is not None else []
        there = (path for path in candidates if path.is_file() or any(path.rglob("*.onnx")))
        found[field] = Path(given[field]) if given.get(field) else next(there, None)
    return found


def load_networks(
    paths: dict[str, Path | None],
    device: torch.device | str,
    named: Collection[str] = (),
    trusted: Collection[str] = (),
) -> Networks:
    """Loads what is there, and notes which options would give the rest.

    TorchScript is a program that can write any file, also on loading: of a model folder it is left out.

    Args:
        paths: from `find_networks`.
        device: where to run.
        named: options that the user gave, whose files may be TorchScript.
        trusted: SHA-256 of TorchScript files that may also come from the model folder.

    Raises:
        InputError: a file is not what its option stands for.
    """
    networks = Networks()
    for field, (metric, features_class) in FEATURES.items():
        path = paths[field]
        if path is None:
            networks.missing[metric] = f"give `{field}`"
        elif is_script(path) and field not in named and not (trusted and hash_file(path) in trusted):
            networks.missing[metric] = f"{path} is a program, which can write any file; if you trust it, give `{field}`"
        else:
            features = features_class(path, device, trusted)
            setattr(networks, "frames" if features_class is FrameFeatures else "clips", features)
            networks.facts.append(features.facts)
    if path := paths["insightface_model_path"]:
        networks.faces, facts = load_analyzer(path, device)
        networks.facts.append(facts)
        if "recognition" not in facts.kind:
            networks.missing["FaceSim, dFaceSim"] = f"`insightface_model_path` {path} holds no recognition model"
    else:
        networks.missing["FaceSim, dFaceSim, KpsDis"] = "give `insightface_model_path`"
    if path := paths["syncnet_path"]:
        networks.syncnet, facts = load_syncnet(path, device)
        networks.facts.append(facts)
    if networks.syncnet is None or networks.faces is None:
        wanted = [field for field in ("syncnet_path", "insightface_model_path") if not paths[field]]
        networks.missing["Sync-C, Sync-D"] = "give " + " and ".join(f"`{field}`" for field in wanted)
    return networks


def evaluate(
    pairs: Sequence[Pair],
    networks: Networks,
    settings: Settings,
    output_dir: Path,
    source: str,
    group_by: Sequence[str] = (),
    problems: Sequence[Problem] = (),
    progress: Callable[[Sequence[Pair]], Iterable[Pair]] = iter,
    meters: Mapping[str, MouthMeter] = MappingProxyType({}),
) -> Report:
    """Measures all pairs, and writes report.md, report.json and pictures into `output_dir`.

    Args:
        pairs: what is compared.
        networks: what measures.
        settings: how.
        output_dir: an existing folder.
        source: what was compared, in words.
        group_by: columns of the metadata; a row per value of each.
        problems: those found before.
        progress: passes pairs on and shows how many are done.
        meters: name -> mouth meter, beside the package's own; see `vexpress.evaluation.mouth`.

    Raises:
        InputError: no pair could be read.
    """
    measures: list[PairMeasures] = []
    problems = list(problems)
    for pair in progress(pairs):
        try:
            if not pair.generated.is_file():
                raise InputError(f"has no generated video {pair.generated}")
            measures.append(measure_pair(pair, networks, settings, meters))
        except InputError as error:
            problems.append(Problem(pair.name, "all", " ".join(str(error).split())))
    if not measures:
        first = problems[0]
        raise InputError(f"none of {len(problems)} clips can be measured; {first.clip}: {first.reason}")
    problems += [problem for measured in measures for problem in measured.problems]
    logger.info("computing rows and intervals of %d clips", len(measures))
    rows, row_problems = build_rows(measures, settings)
    group_rows, group_problems = build_group_rows(measures, group_by, settings)
    problems += row_problems + group_problems
    ranking, pictures = save_pictures(output_dir, measures, rows, group_rows, settings)
    report = Report(source, rows, group_rows, measures, problems, networks, settings, ranking, pictures)
    save_report(output_dir, report)
    return report
