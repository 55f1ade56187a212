"""System metrics of a run (CPU, memory, disk, network, GPU), sent like its other metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's system monitor, with its names and settings, which continues while the store does not answer.

    The original requests the run from the store before every sample and ends at the first failure.

    Args:
        run_id: id of the run; a resumed run continues from its last step.
        log: function that logs metrics at a step.
    """

    def __init__(self, run_id: str, log: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__(run_id, resume_logging=True)
        self._log = log

    def monitor(self) -> None:
        """Sample until the run ends."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log one set of samples."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._log({f"{prefix}{name}": value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()
