"""Objectives: frozen dataclasses called with (model, batch, step), one a file; found by name in ``physio_models.OBJECTIVES``."""
