"""`python -m dsd_trt`, which launchers such as accelerate's can start in several processes."""

from dsd_trt.cli import main

if __name__ == "__main__":
    main()
