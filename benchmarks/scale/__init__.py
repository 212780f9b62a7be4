"""The study of scale: both methods with equal time, on teachers of growing length and codebook."""
