"""A data set dealt to every strategy, seed and site of a comparison."""

from pathlib import Path

from wardround.client.cases.dataset import Dataset
from wardround.deploy.compare.settings import CompareSettings
from wardround.deploy.dealing import ArmRun, Layout, capped_split, check_sites, dealt, holdings
from wardround.deploy.settings import uncombined


def compare_layout(out: Path, settings: CompareSettings, dataset: Dataset) -> Layout:
    """Deal a data set to the runs of a comparison: seeds before arms, so that what is stopped can be compared.

    Raises
    ------
    UsageError, DataError
        As :func:`wardround.deploy.dealing.split`.
    """
    federation = capped_split(dataset, settings)
    check_sites("slow", settings.slow, federation)
    labels = len(dataset.label_names)
    runs = []
    for seed in settings.seeds:
        for arm in (*settings.arms, *settings.beside):
            for name, model, cases in dealt(federation, arm, settings.rounds, seed):
                own = settings.combination(arm)
                combined = len(cases) > 1
                plan = settings.round_plan(arm, seed, run=name, labels=labels)
                runs.append(
                    ArmRun(
                        folder=out / "arms" / name,
                        arm=arm,
                        seed=seed,
                        model=model,
                        cases=cases,
                        plan=plan if combined else uncombined(plan),
                        strategy=own.strategy if combined else "fedavg",
                        strategy_options=own.options if combined else None,
                        weighting=own.weighting if combined else "examples",
                        weighting_options=own.weighting_options if combined else {},
                        slow=settings.slow if combined else {},
                        device=settings.device,
                        strokes=settings.strokes,
                    )
                )
    return Layout(holdings(federation, settings.beside), tuple(runs), federation)
