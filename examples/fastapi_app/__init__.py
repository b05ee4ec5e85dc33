"""A FastAPI application with OpenTelemetry and a worker, and otel_tracker in both.

``QUEUE=jobs.db uvicorn examples.fastapi_app.web:app`` takes recordings, and
``QUEUE=jobs.db DASHBOARD=http://127.0.0.1:8000 python -m examples.fastapi_app.worker`` measures
them. `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans go, as in any application.
"""
