"""`fovea check`: settings and the whole repository, without serving."""

import asyncio

from service import __version__
from service.config import Settings
from service.model import LoadedModel
from service.repository.states import ModelState
from service.repository.table import ModelStatus
from service.server import InferenceServer


def check_repository(settings: Settings) -> int:
    """Load and warm everything that a server would; print a line for each version. 1 where anything is wrong."""
    return asyncio.run(_check(settings))


async def _check(settings: Settings) -> int:
    server = InferenceServer(settings, __version__)
    try:
        await server.repository.reconcile()
        index = server.repository.index()
        for status in index:
            for line in _report(status):
                print(line)
        wrong = sum(_is_wrong(status) for status in index)
        for name in settings.repository.required:
            if name not in server.repository.ready_models:
                print(f"ERROR  {name}: named by repository.required, and not ready")
                wrong += 1
        if not index:
            print(f"ERROR  {settings.repository.path}: no model folder in it; a model is <name>/1/model.onnx")
            wrong += 1
        print(f"{len(index)} models, {wrong} with errors")
        return 1 if wrong else 0
    finally:
        await server.close()


def _is_wrong(status: ModelStatus[LoadedModel]) -> bool:
    failed = any(version.state is ModelState.UNAVAILABLE for version in status.versions)
    return bool(status.problem) or failed or not status.is_ready


def _report(status: ModelStatus[LoadedModel]) -> list[str]:
    if status.problem:
        return [f"ERROR  {status.name}: {status.problem}"]
    lines = []
    for version in status.versions:
        place = f"{status.name}/{version.version}"
        if version.loaded is not None:
            description = version.loaded.description
            provider = description.engine.provider
            fallback = f" (instead of {provider.fallback_reason})" if provider.fallback_reason else ""
            takes = "images" if description.spec.input else "tensors only"
            lines.append(f"ok     {place}: {len(description.labels)} labels, {takes}, on {provider.name}{fallback}")
        elif version.state is ModelState.UNAVAILABLE:
            lines.append(f"ERROR  {place}: {version.reason}")
        else:
            lines.append(f"-      {place}: not in service by version_policy")
    if not status.is_ready and not any(line.startswith("ERROR") for line in lines):
        lines.append(f"ERROR  {status.name}: {status.reason}")
    return lines
