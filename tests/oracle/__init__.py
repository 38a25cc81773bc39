"""The independent oracle: the eleven methods' gradients and the language's reductions, by hand, in numpy."""
