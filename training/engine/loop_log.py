"""Log of the training loop: progress bar, MLflow curves, a line per epoch, skipped images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from training.engine.progress import Plan, Progress, announce
from training.engine.session import Session


class LoopLog:
    """Log of one run; silent on ranks other than 0.

    Args:
        title: prefix of the bar and of the lines.
        plan: length of the run.
        step: steps done before, if the run is resumed.
        session: processes and MLflow run.
    """

    def __init__(self, title: str, plan: Plan, step: int, session: Session) -> None:
        self.title, self.plan, self.session = title, plan, session
        self.skipped: set[str] = set()
        self.bar = tqdm(
            total=plan.seen(plan.steps),
            initial=plan.seen(step),
            desc=title,
            unit="img",
            unit_scale=True,
            disable=not session.accelerator.is_main_process,
            mininterval=1.0,
        )

    def watched(self, batches: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Pass batches on; collect the images that the loader had to skip, and name each once."""
        for batch in batches:
            for name in batch.get("skipped", ()):
                if name not in self.skipped:
                    self.skipped.add(name)
                    self.bar.write(f"skipped {name}")
            yield batch

    def advance(self) -> None:
        """Advance the bar by one step."""
        self.bar.update(self.plan.samples_per_step)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()

    def terms(self, progress: Progress, rate: float) -> None:
        """Log the means of all terms since the last call under ``train/``, with rate and samples.

        Args:
            progress: its running sums are logged and reset.
            rate: learning rate of the last step.
        """
        run, step = self.session.run, progress.step
        means = {name: total / count for name, (total, count) in progress.running.items()}
        run.metrics(
            {f"train/{k}": v for k, v in means.items()}
            | {"train/learning_rate": rate, "train/samples": self.plan.seen(step)},
            step,
        )
        if self.skipped:
            run.metrics({"train/skipped_images": len(self.skipped)}, step)
        self.bar.set_postfix(loss=f"{means['loss']:.4f}")
        progress.running = {}

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float], raw: Mapping[str, float]) -> None:
        """Log a validation, report it to a watching tuner, and print it.

        Args:
            epoch: from 1.
            step: optimizer steps done.
            metrics: metrics of the EMA weights, logged under ``val/``.
            raw: metrics of the weights themselves, logged under ``val_raw/``; may be empty.
        """
        self.session.run.metrics(
            {f"val/{k}": v for k, v in metrics.items()} | {f"val_raw/{k}": v for k, v in raw.items()}, step
        )
        if self.session.accelerator.is_main_process:
            announce(epoch, self.plan.seen(step), metrics)
        self.bar.write(f"{self.title}: epoch {epoch}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
