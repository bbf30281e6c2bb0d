//! Pods that talk all the time and count: to see what a disturbance breaks, or lets through.
