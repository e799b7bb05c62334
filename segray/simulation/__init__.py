"""segray without images, models or Ray: made-up detections, and a cluster whose clock jumps. For figures of cost."""
