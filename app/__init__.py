"""Commands, configuration and pipelines that combine data, models and eval."""
