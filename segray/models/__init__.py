"""Adapters of model families, the OpenVINO engine, and the search for a configured model."""
