"""The Visual Genome detector of bottom-up attention (Anderson et al. 2018), whose regions the paper's are.

Faster R-CNN with ResNet-101-C4: 1,600 object classes and 400 attributes. Its public ports differ; which one is spoken
of is written in `rules.py`, and a store names it. Weights are the user's (`weights.py`).
"""
