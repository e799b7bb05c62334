"""TensorFlow's detection graphs as OpenVINO converts them, rewritten to do the same for one image with less.

nodes reads and rewires graphs; passes and suppression are the rewrites; proof runs both graphs and compares; lean does
it all for a file.
"""
