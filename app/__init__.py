"""Command line, configuration, pipelines: what puts data, models and eval together."""
