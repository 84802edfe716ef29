"""Write grafana/dashboard.json. Run by `make dashboard`, with PyPI grafana-foundation-sdk==0.0.21.

Owns what is shown, in which order, with which words. A panel is one line of `ROWS`: how it is drawn stands in `_build`,
where it stands follows from the widths. Expressions use the service's own metrics, so that the dashboard works without
rules.yml; only the line of firing alerts needs it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

OUTPUT = Path(__file__).with_name("grafana") / "dashboard.json"
DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24

REPLICA = 'job=~"$job", instance=~"$instance"'
MODEL = REPLICA + ', model=~"$model"'
WINDOW = "[$__rate_interval]"

Kind = Literal["stat", "names", "lines", "stack", "share", "table", "heatmap"]
Steps = tuple[tuple[float | None, str], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `targets` are (expression, legend); `steps` are (from this value, colour)."""

    title: str
    description: str
    targets: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Kind = "lines"
    width: int = 8
    height: int = 8
    steps: Steps = ()
    hidden: tuple[str, ...] = ()  # columns of a table
    no_value: str = "no data"


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...] = field(default=())


def rate(metric: str, selector: str = MODEL, by: str = "") -> str:
    """What a counter grows by a second, summed over what `by` does not name."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{selector}}}{WINDOW}))"


def quantile(q: float, metric: str, by: str = "", selector: str = MODEL) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', selector, labels)})"


def mean(metric: str, by: str = "", selector: str = MODEL) -> str:
    return f"{rate(metric + '_sum', selector, by)} / ({rate(metric + '_count', selector, by)} > 0)"


def mean_since_start(metric: str, by: str) -> str:
    """For what is so rare that a window holds none of it."""
    return f"sum by ({by}) ({metric}_sum{{{MODEL}}}) / sum by ({by}) ({metric}_count{{{MODEL}}})"


def stage(name: str) -> str:
    return f'{MODEL}, stage="{name}"'


def or_none(expression: str, label: str) -> str:
    """`expression`, or a zero line called "none": a counter has no series before its first event."""
    return f'{expression} or on () label_replace(vector(0), "{label}", "none", "", "")'


OK = MODEL + ', outcome="ok"'
NOT_OK = MODEL + ', outcome!="ok"'
FAILED = ', outcome="error"'
AGREED = ', result="agreed"'
COMPARED = ', result=~"agreed|disagreed"'
UNSURE = MODEL + ', le="0.5"'
REQUESTS = rate("fovea_requests_total")
ANSWERABLE = rate("fovea_requests_total", MODEL + ', outcome!~"client_error|cancelled"')
FIRING = 'ALERTS{alertname=~"Fovea.+", alertstate="firing"}'

NOW = Row(
    "Now",
    (
        Panel(
            "Firing alerts",
            "Every alert of rules.yml that fires now, with its model. Each has a section of its name in RUNBOOK.md. "
            '"none" is good.',
            ((or_none(f"sum by (alertname, model) ({FIRING})", "alertname"), "{{alertname}} {{model}}"),),
            kind="names",
            width=24,
            height=3,
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "Replicas down",
            "Replicas that Prometheus cannot reach. Anything over 0 is bad.",
            (('count(up{job=~"$job"} == 0) or vector(0)', ""),),
            kind="stat",
            width=3,
            height=4,
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "Models not ready",
            "Models without a READY version, on any replica. Requests for them get 503.",
            (
                (
                    f"count(count by (instance, model) (fovea_model_state{{{MODEL}}}) unless "
                    f'count by (instance, model) (fovea_model_state{{{MODEL}, state="READY"}})) or vector(0)',
                    "",
                ),
            ),
            kind="stat",
            width=3,
            height=4,
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "Versions ready",
            "READY versions, all models and replicas together. A fall means a replica or a version is gone.",
            ((f'count(fovea_model_state{{{MODEL}, state="READY"}}) or vector(0)', ""),),
            kind="stat",
            width=3,
            height=4,
            steps=((None, "red"), (1, "green")),
        ),
        Panel(
            "Requests",
            "Requests that ended, a second, however they ended.",
            ((REQUESTS, ""),),
            unit="reqps",
            kind="stat",
            width=3,
            height=4,
            no_value="no traffic",
        ),
        Panel(
            "Answered",
            "Share of requests answered with 200, of those that could be: the caller's own mistakes and callers who "
            "left do not count. Under 99.9 % somebody is turned away.",
            ((f"({rate('fovea_requests_total', OK)} or vector(0)) / ({ANSWERABLE} > 0)", ""),),
            unit="percentunit",
            kind="stat",
            width=3,
            height=4,
            steps=((None, "red"), (0.99, "orange"), (0.999, "green")),
            no_value="no traffic",
        ),
        Panel(
            "p99",
            "99 of 100 requests end faster, the client's upload included. The alert is at 1 s.",
            ((quantile(0.99, "fovea_request_duration_seconds"), ""),),
            unit="s",
            kind="stat",
            width=3,
            height=4,
            steps=((None, "green"), (0.5, "orange"), (1, "red")),
            no_value="no traffic",
        ),
        Panel(
            "Refused",
            "Requests a second refused or dropped with 503 to keep the service healthy. Reasons are below.",
            ((f"{rate('fovea_rejected_total')} or vector(0)", ""),),
            unit="reqps",
            kind="stat",
            width=3,
            height=4,
            steps=((None, "green"), (0.01, "orange"), (1, "red")),
        ),
        Panel(
            "Queue time",
            "How long an image waits for an execution, on average. Milliseconds are good; over 250 ms is overload.",
            ((mean("fovea_stage_duration_seconds", selector=stage("queue")), ""),),
            unit="s",
            kind="stat",
            width=3,
            height=4,
            steps=((None, "green"), (0.1, "orange"), (0.25, "red")),
            no_value="no traffic",
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests by model",
            "`_other` is every name that is no model of the repository.",
            ((rate("fovea_requests_total", by="model"), "{{model}}"),),
            unit="reqps",
            kind="stack",
        ),
        Panel(
            "Images by model",
            "Images answered. Over the requests where callers send several at once.",
            ((rate("fovea_images_total", by="model"), "{{model}}"),),
            unit="ops",
            kind="stack",
        ),
        Panel(
            "Requests in flight",
            "Admitted and not yet answered, by replica. A line that only rises means that answers do not leave; "
            "limits.inflight_requests (1,024) ends it with 503.",
            ((f"fovea_inflight_requests{{{REPLICA}}}", "{{instance}}"),),
        ),
        Panel(
            "Requests by version",
            "Which version answers. During a change of version one line takes over from the other.",
            ((rate("fovea_requests_total", by="model, version"), "{{model}} {{version}}"),),
            unit="reqps",
            width=12,
        ),
        Panel(
            "Requests by protocol",
            "native is /api/v1, v1 and v2 are the protocols of the field.",
            ((rate("fovea_requests_total", by="protocol"), "{{protocol}}"),),
            unit="reqps",
            width=12,
        ),
    ),
)

ERRORS = Row(
    "Errors and refusals",
    (
        Panel(
            "Requests by outcome",
            "error is a 500 and a fault of the service. rejected is 503, timeout 504, client_error 4xx; cancelled: the "
            "caller left.",
            ((rate("fovea_requests_total", by="outcome"), "{{outcome}}"),),
            unit="reqps",
            kind="stack",
        ),
        Panel(
            "Refused by reason",
            "queue_full: the queue's length; queue_wait: the wait; inflight_*: the whole server; not_ready: the model; "
            "draining: a shutdown; out_of_memory: an allocation failed.",
            ((or_none(rate("fovea_rejected_total", by="reason"), "reason"), "{{reason}}"),),
            unit="reqps",
            kind="stack",
        ),
        Panel(
            "Not answered, by model",
            "Share of a model's requests with each outcome but ok. Alerts: client_error 20 %, timeout 5 %, error 1 %.",
            (
                (
                    or_none(
                        f"{rate('fovea_requests_total', NOT_OK, 'model, outcome')}"
                        f" / on (model) group_left () ({rate('fovea_requests_total', by='model')} > 0)",
                        "outcome",
                    ),
                    "{{model}} {{outcome}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Images refused by reason",
            "What is wrong with the callers' images, by error code. One that jumps is one caller's change.",
            ((or_none(rate("fovea_images_rejected_total", by="model, reason"), "reason"), "{{model}} {{reason}}"),),
            unit="ops",
            width=12,
        ),
        Panel(
            "Callers who left, by phase",
            "receive: during the upload; queue: while waiting; infer: while running. Many in queue: callers give up "
            "earlier than the service does.",
            ((or_none(rate("fovea_cancelled_total", by="model, phase"), "phase"), "{{model}} {{phase}}"),),
            unit="reqps",
            width=12,
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Requests",
            "From the first byte of a request to its answer, the client's upload included.",
            tuple(
                (quantile(q, "fovea_request_duration_seconds"), name)
                for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ),
            unit="s",
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "p99 by model",
            "The same by model: which one is slow.",
            ((quantile(0.99, "fovea_request_duration_seconds", "model"), "{{model}}"),),
            unit="s",
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "p99 by replica",
            "The same by replica: one apart from the others has a bad neighbour or lost its GPU.",
            ((quantile(0.99, "fovea_request_duration_seconds", "instance"), "{{instance}}"),),
            unit="s",
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "p99 by stage",
            "Where the time goes. receive: slow clients; decode: large images; queue: load; infer: the model.",
            ((quantile(0.99, "fovea_stage_duration_seconds", "stage"), "{{stage}}"),),
            unit="s",
        ),
        Panel(
            "Mean by stage",
            "The same as means, stacked: what an image costs. `infer` is the time of its whole batch.",
            ((mean("fovea_stage_duration_seconds", "stage"), "{{stage}}"),),
            unit="s",
            kind="stack",
        ),
        Panel(
            "Engine time of an image, by model",
            "Mean of infer, divided by the mean batch. What FoveaModelSlow watches: it should not depend on load.",
            (
                (
                    f"{mean('fovea_stage_duration_seconds', 'model', stage('infer'))}"
                    f" / ({mean('fovea_batch_size', 'model')})",
                    "{{model}}",
                ),
            ),
            unit="s",
        ),
    ),
)

QUEUE = Row(
    "Batches and queue",
    (
        Panel(
            "Images in a batch, mean",
            "1 on an idle server; grows by itself under load, up to max_batch_size. At the top it helps no further.",
            ((mean("fovea_batch_size", "model"), "{{model}}"),),
        ),
        Panel(
            "Images in a batch, distribution",
            "How many executions had how many images.",
            ((f"sum by (le) (increase(fovea_batch_size_bucket{{{MODEL}}}{WINDOW}))", "{{le}}"),),
            kind="heatmap",
        ),
        Panel(
            "Executions",
            "Engine calls a second.",
            ((rate("fovea_batch_size_count", by="model"), "{{model}}"),),
            unit="ops",
        ),
        Panel(
            "Entries in the queue",
            "Images waiting at the moment of the scrape. At max_queue_size (256) new ones get 503.",
            ((f"sum by (model, instance) (fovea_queue_entries{{{MODEL}}})", "{{model}} {{instance}}"),),
        ),
        Panel(
            "Queue time, mean",
            "By model and replica. What replicas are scaled on.",
            (
                (
                    mean("fovea_stage_duration_seconds", "model, instance", stage("queue")),
                    "{{model}} {{instance}}",
                ),
            ),
            unit="s",
            steps=((None, "green"), (0.25, "red")),
        ),
        Panel(
            "Queue time, p99",
            "Nobody waits longer than max_queue_wait_ms (1 s): who would is refused.",
            ((quantile(0.99, "fovea_stage_duration_seconds", "model", stage("queue")), "{{model}}"),),
            unit="s",
            steps=((None, "green"), (1, "red")),
        ),
    ),
)

MODELS = Row(
    "Models",
    (
        Panel(
            "Versions and their states",
            "UNAVAILABLE did not load: the log event model_state_change has the reason. UNKNOWN is not wanted by the "
            "version policy.",
            ((f"fovea_model_state{{{MODEL}}} == 1", ""),),
            kind="table",
            width=10,
            hidden=("Time", "Value", "__name__", "job"),
        ),
        Panel(
            "Versions by state",
            "READY should be steady. LOADING that stays is a load that hangs.",
            ((f"count by (state) (fovea_model_state{{{MODEL}}} == 1)", "{{state}}"),),
            width=7,
        ),
        Panel(
            "Loads by result",
            "How many versions were loaded, since the replicas started. Every failure has its reason in the log.",
            (
                (
                    f"sum by (model, result) (fovea_model_reloads_total{{{MODEL}}})",
                    "{{model}} {{result}}",
                ),
            ),
            width=7,
        ),
        Panel(
            "Execution provider in use",
            "What each version really runs on. CPU where a GPU is meant: the driver, or the image without it.",
            ((f"fovea_provider_info{{{MODEL}}} == 1", ""),),
            kind="table",
            width=10,
            height=6,
            hidden=("Time", "Value", "__name__", "job"),
        ),
        Panel(
            "Looks at the repository that failed",
            "A second. Over 0: the folder cannot be read, what is loaded goes on serving.",
            ((rate("fovea_repository_errors_total", REPLICA, "instance"), "{{instance}}"),),
            width=7,
            height=6,
            steps=((None, "green"), (0.001, "red")),
        ),
        Panel(
            "Replicas by build",
            "More than one line is a rollout under way, or one that stopped half-way.",
            ((f"count by (version) (fovea_build_info{{{REPLICA}}})", "{{version}}"),),
            width=7,
            height=6,
        ),
    ),
)

ROLLOUT = Row(
    "Rollout",
    (
        Panel(
            "Roles",
            "What its role gives a version: stable and canary share the requests that name no version, the shadow is "
            "shown its share of executions.",
            ((f"avg by (model, version, role) (fovea_rollout_share{{{MODEL}}})", "{{model}} {{version}} {{role}}"),),
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Failed requests by version",
            "Share of a version's requests that ended in 500. A canary above the stable version is taken back.",
            (
                (
                    f"({rate('fovea_requests_total', MODEL + FAILED, 'model, version')} or "
                    f"0 * {rate('fovea_requests_total', MODEL, 'model, version')}) / "
                    f"({rate('fovea_requests_total', MODEL, 'model, version')} > 0)",
                    "{{model}} {{version}}",
                ),
            ),
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Shadow agrees",
            "Share of compared images that shadow and stable version call the same. Examples of those they do not: "
            "GET /api/v1/models/MODEL/rollout.",
            (
                (
                    f"{rate('fovea_shadow_images_total', MODEL + AGREED, 'model, version')} / "
                    f"({rate('fovea_shadow_images_total', MODEL + COMPARED, 'model, version')} > 0)",
                    "{{model}} {{version}}",
                ),
            ),
            unit="percentunit",
            width=8,
        ),
        Panel(
            "Images a shadow was shown",
            "A second, by what became of them. left_out: there was no idle time for it. failed: see shadow_failed in "
            "the log.",
            ((rate("fovea_shadow_images_total", MODEL, "model, result"), "{{model}} {{result}}"),),
            width=8,
        ),
        Panel(
            "Score difference of the shadow, mean",
            "How far it scores the stable version's best label from it.",
            ((mean("fovea_shadow_score_difference", "model, version"), "{{model}} {{version}}"),),
            width=8,
        ),
        Panel(
            "CPU time of an execution, stable and shadow",
            "Of the same executions, on average: what the shadow's version would cost.",
            ((mean("fovea_shadow_duration_seconds", "model, version, role"), "{{model}} {{version}} {{role}}"),),
            unit="s",
            width=8,
        ),
        Panel(
            "Versions refused, by check",
            "Since the replicas started. The reason of each stands in the list of models and in the log.",
            (
                (
                    f"sum by (model, reason) (fovea_model_refusals_total{{{MODEL}}}) or "
                    f"0 * sum by (model) (fovea_model_reloads_total{{{MODEL}}})",
                    "{{model}} {{reason}}",
                ),
            ),
            width=8,
        ),
        Panel(
            "Loads take, mean since the start",
            "From reading the files to being warm. Longer where the machine is busy.",
            ((mean_since_start("fovea_model_load_duration_seconds", "model"), "{{model}}"),),
            unit="s",
            width=8,
        ),
        Panel(
            "Executions that failed or hung",
            "A second. A few of one model: images or tensors that its graph cannot run; each is found, and refused "
            "alone.",
            (
                (rate("fovea_failed_executions_total", MODEL, "model"), "{{model}} failed"),
                (rate("fovea_hung_executions_total", MODEL, "model"), "{{model}} hung"),
            ),
            width=8,
        ),
        Panel(
            "Drift of the classes",
            "Population stability index of the last predictions against reference.json, less what chance alone gives: "
            "under 0.1 is nothing, over 0.2 another traffic.",
            ((f"fovea_prediction_drift{{{MODEL}}}", "{{model}} {{version}} {{instance}}"),),
            width=12,
            steps=((None, "green"), (0.1, "yellow"), (0.2, "red")),
        ),
        Panel(
            "Drift of the confidence",
            "The same of the best scores. Without drift of the classes: images that the model finds harder.",
            ((f"fovea_confidence_drift{{{MODEL}}}", "{{model}} {{version}} {{instance}}"),),
            width=12,
            steps=((None, "green"), (0.1, "yellow"), (0.2, "red")),
        ),
    ),
)

ANSWERS = Row(
    "Answers",
    (
        Panel(
            "Class mix",
            "Share of each first prediction of a model, the ten most frequent. A class that jumps is a change in what "
            "callers send, or in the model.",
            (
                (
                    f"topk(10, {rate('fovea_predictions_total', by='model, label')}"
                    f" / on (model) group_left () ({rate('fovea_predictions_total', by='model')} > 0))",
                    "{{model}} {{label}}",
                ),
            ),
            unit="percentunit",
            kind="share",
        ),
        Panel(
            "Confidence",
            "Score of the best prediction: median, and the tenth that the model is least sure of. A fall without a new "
            "version means other images than it was trained on.",
            (
                (quantile(0.5, "fovea_prediction_confidence", "model, version"), "{{model}} {{version}} median"),
                (quantile(0.1, "fovea_prediction_confidence", "model, version"), "{{model}} {{version}} p10"),
            ),
            unit="percentunit",
        ),
        Panel(
            "Unsure answers",
            "Share of best predictions with a score up to 0.5.",
            (
                (
                    f"{rate('fovea_prediction_confidence_bucket', UNSURE, 'model, version')}"
                    f" / ({rate('fovea_prediction_confidence_count', by='model, version')} > 0)",
                    "{{model}} {{version}}",
                ),
            ),
            unit="percentunit",
        ),
    ),
)

PROCESS = Row(
    "Process",
    (
        Panel(
            "CPU",
            "Cores in use by replica. At the quota of the container the queue grows.",
            ((f"rate(process_cpu_seconds_total{{{REPLICA}}}{WINDOW})", "{{instance}}"),),
            unit="cores",
        ),
        Panel(
            "Memory",
            "Resident bytes by replica. Steady after the models are loaded; growth over hours is a leak.",
            ((f"process_resident_memory_bytes{{{REPLICA}}}", "{{instance}}"),),
            unit="bytes",
        ),
        Panel(
            "File descriptors",
            "Share of the allowed ones: connections, mostly. At 100 % no connection is accepted.",
            ((f"process_open_fds{{{REPLICA}}} / process_max_fds{{{REPLICA}}}", "{{instance}}"),),
            unit="percentunit",
            steps=((None, "green"), (0.8, "red")),
        ),
        Panel(
            "Garbage collections",
            "A second, by generation. Generation 2 should be rare: it stops every request for its time.",
            ((rate("python_gc_collections_total", REPLICA, "generation"), "generation {{generation}}"),),
            unit="ops",
        ),
        Panel(
            "Log lines dropped",
            "Since the start. Over 0: the reader of stdout is too slow; answers are not held up by it.",
            ((f"fovea_log_lines_dropped{{{REPLICA}}}", "{{instance}}"),),
            steps=((None, "green"), (1, "red")),
        ),
        Panel(
            "Uptime",
            "Since the process started. A line that falls to 0 is a restart.",
            ((f"time() - process_start_time_seconds{{{REPLICA}}}", "{{instance}}"),),
            unit="s",
        ),
    ),
)

_GPU = "{{Hostname}} GPU {{gpu}}"
GPU = Row(
    "GPU (from dcgm-exporter; empty where there is no GPU)",
    (
        Panel(
            "GPU utilisation",
            "Share of time in which a kernel ran. Low under load: the CPU side (decode) or small batches hold it up. "
            "Empty without a GPU.",
            (("DCGM_FI_DEV_GPU_UTIL", _GPU),),
            unit="percent",
            width=6,
        ),
        Panel(
            "GPU memory",
            "Share in use. A version that does not fit stays UNAVAILABLE. Empty without a GPU.",
            (("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)", _GPU),),
            unit="percentunit",
            width=6,
            steps=((None, "green"), (0.95, "red")),
        ),
        Panel(
            "GPU temperature",
            "Most cards lower their clock between 80 and 90 degrees, and the model gets slow. Empty without a GPU.",
            (("DCGM_FI_DEV_GPU_TEMP", _GPU),),
            unit="celsius",
            width=6,
            steps=((None, "green"), (85, "red")),
        ),
        Panel(
            "GPU errors (Xid)",
            "The last Xid code of the driver; 0 is none. Any other: drain the node. Empty without a GPU.",
            (("DCGM_FI_DEV_XID_ERRORS", _GPU),),
            width=6,
            steps=((None, "green"), (1, "red")),
        ),
    ),
)

ROWS = (NOW, TRAFFIC, ERRORS, LATENCY, QUEUE, MODELS, ROLLOUT, ANSWERS, PROCESS, GPU)


def _query(expression: str, legend: str, place: int, kind: Kind) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + place))
    if kind in ("table", "stat", "names"):
        query = query.instant()
    else:
        query = query.range()
    if kind == "table":
        query = query.format(prometheus_models.PromQueryFormat.TABLE)
    if kind == "heatmap":
        query = query.format(prometheus_models.PromQueryFormat.HEATMAP)
    return query


def _drawn(panel: Panel) -> Any:
    """The panel's builder, with what only its kind has."""
    if panel.kind in ("stat", "names"):
        names = panel.kind == "names"
        return (
            stat.Panel()
            .color_mode(common.BigValueColorMode.BACKGROUND if names else common.BigValueColorMode.VALUE)
            .graph_mode(common.BigValueGraphMode.NONE)
            .text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.VALUE)
            .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        )
    if panel.kind == "table":
        organize = models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": dict.fromkeys(panel.hidden, True)}
        )
        return table.Panel().transformations([organize])
    if panel.kind == "heatmap":
        return heatmap.Panel()
    lines = (
        timeseries.Panel()
        .min(0)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if panel.kind == "stack":
        lines = lines.fill_opacity(30).stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if panel.kind == "share":
        lines = lines.max(1)
    if panel.kind == "lines" and panel.steps:
        lines = lines.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    return lines


def _build(panel: Panel, number: int, place: models.GridPos) -> Any:
    steps = [models.Threshold(value=value, color=color) for value, color in panel.steps or ((None, "green"),)]
    by_threshold = panel.kind in ("stat", "names")
    color = models.FieldColorModeId.THRESHOLDS if by_threshold else models.FieldColorModeId.PALETTE_CLASSIC
    built = (
        _drawn(panel)
        .id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(DATASOURCE)
        .grid_pos(place)
        .unit(panel.unit)
        .no_value(panel.no_value)
        .color_scheme(builders.FieldColor().mode(color))
        .thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    )
    for place_in_panel, (expression, legend) in enumerate(panel.targets):
        built = built.with_target(_query(expression, legend, place_in_panel, panel.kind))
    return built


def _placed(panels: tuple[Panel, ...], top: int) -> Iterator[tuple[Panel, models.GridPos]]:
    """Left to right, a new line where the next one does not fit; a line is as high as its highest panel."""
    left = height = 0
    for panel in panels:
        if left + panel.width > COLUMNS:
            left, top, height = 0, top + height, 0
        yield panel, models.GridPos(x=left, y=top, w=panel.width, h=panel.height)
        left, height = left + panel.width, max(height, panel.height)


def _variable(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def build() -> models.Dashboard:
    """The whole dashboard."""
    board = (
        builders.Dashboard("Fovea")
        .uid("fovea")
        .description("Image classification: what is wrong, and where. Alerts: rules.yml; what to do: RUNBOOK.md.")
        .tags(["fovea", "inference"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "Job", "label_values(fovea_build_info, job)").all_value("fovea.*"))
        .with_variable(_variable("instance", "Replica", 'label_values(fovea_build_info{job=~"$job"}, instance)'))
        .with_variable(_variable("model", "Model", 'label_values(fovea_model_state{job=~"$job"}, model)'))
    )
    number = top = 0
    for row in ROWS:
        number += 1
        board = board.with_row(builders.Row(row.title).id(number).grid_pos(models.GridPos(x=0, y=top, w=COLUMNS, h=1)))
        bottom = top = top + 1
        for panel, place in _placed(row.panels, top):
            number += 1
            board = board.with_panel(_build(panel, number, place))
            bottom = max(bottom, place.y + place.h)
        top = bottom
    return board.build()


def render() -> str:
    """The dashboard as the file holds it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build()) + "\n"


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{OUTPUT}\n")
