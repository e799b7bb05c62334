"""TensorFlow's detection graphs, rewritten to compute the same for one image at lower cost.

graph reads and rewires graphs. passes and nms are the rewrites. equivalence runs both graphs and compares them.
convert does all of this for a file.
"""
