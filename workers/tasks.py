"""The one task: a ring."""

from workers.celery_app import app, current_worker


@app.task(name="workers.serve", ignore_result=True)  # type: ignore[untyped-decorator]  # celery is untyped
def serve() -> None:
    """Serve whatever can be claimed; a needless ring returns at once."""
    current_worker().serve()
