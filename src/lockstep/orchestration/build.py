"""The pipeline's definition: pure, so that a remote executor can build it again in every pod."""

from runnable import Catalog, Pipeline, PythonTask, metric

from lockstep.orchestration import steps

DATA = ["data/data.json"]  # not the data itself: Runnable hashes each file at every get and put
PLAN = ["distributed.json"]
TRAINED = ["checkpoints/**/*", "metrics/*", "logs/rank-*.log"]
RESULTS = ["distributed_training_results.json"]
# The model, which a run whose ranks hold parts of it leaves out above a size; a pattern has to match something.
MODEL = ["distributed[._]*"]


def build() -> Pipeline:
    """prepare_data, setup_distributed, train, aggregate_metrics, evaluate, report."""
    return Pipeline(
        steps=[
            PythonTask(
                name="prepare_data",
                function=steps.prepare_data,
                catalog=Catalog(put=DATA),
                returns=["data_identity"],
            ),
            PythonTask(
                name="setup_distributed",
                function=steps.setup_distributed,
                catalog=Catalog(get=DATA, put=PLAN),
                returns=["steps"],
            ),
            PythonTask(
                name="train",
                function=steps.train,
                catalog=Catalog(get=DATA + PLAN, put=TRAINED + MODEL),
                returns=["trained_steps"],
            ),
            PythonTask(
                name="aggregate_metrics",
                function=steps.aggregate_metrics,
                catalog=Catalog(get=["metrics/*"], put=RESULTS),
                returns=[metric("samples_per_second")],
            ),
            PythonTask(
                name="evaluate",
                function=steps.evaluate,
                catalog=Catalog(get=["checkpoints/**/*", *RESULTS], put=RESULTS),
                returns=[metric("test_accuracy"), metric("test_loss")],
            ),
            PythonTask(
                name="report",
                function=steps.report,
                catalog=Catalog(get=RESULTS, put=["report.html"]),
            ),
        ]
    )
