"""Raw output rows to predictions. numpy only; knows no model, no HTTP."""

from service.tasks.base import Task, TaskSpec
from service.tasks.binary import Binary
from service.tasks.multiclass import Multiclass
from service.tasks.multilabel import Multilabel

TASKS: dict[str, type[Task]] = {"multiclass": Multiclass, "multilabel": Multilabel, "binary": Binary}

__all__ = ["TASKS", "Task", "TaskSpec"]
