"""`fovea tune` as its users run it."""

import re
from pathlib import Path

from tests.support.server_process import run_fovea


class TestTune:
    def test_manifest_with_the_most_throughput_within_the_bound_is_written(
        self, color_repository: Path, tmp_path: Path
    ) -> None:
        manifest = color_repository / "colors" / "model.toml"
        before = manifest.read_text()
        done = run_fovea(
            "tune",
            "colors/1",
            "--budget-s",
            "2",
            "--p99-ms",
            "500",
            "--model-repo",
            color_repository,
            "--output",
            tmp_path,
        )
        after = manifest.read_text()
        manifest.write_text(before)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert after.startswith(before)
        assert "max_batch_size = " in after
        assert "intra_op_threads = " in after
        assert re.search(r"\[ +\d+ of 2 s\] \d x \d threads, batch \d+: [\d.]+/s at p99", done.stdout)
        assert "Trade-off" in (tmp_path / "report.html").read_text()

    def test_bound_that_nothing_keeps_changes_nothing(self, color_repository: Path, tmp_path: Path) -> None:
        before = (color_repository / "colors" / "model.toml").read_text()
        done = run_fovea(
            "tune",
            "colors",
            "--budget-s",
            "1",
            "--p99-ms",
            "0.001",
            "--model-repo",
            color_repository,
            "--output",
            tmp_path,
        )
        assert done.returncode == 1
        assert "nothing kept p99 under 0.001 ms" in done.stdout
        assert (color_repository / "colors" / "model.toml").read_text() == before
