"""One job from payload to result."""
