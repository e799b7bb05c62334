"""Adapters of model families, the OpenVINO engine, and how a configured model is found."""
