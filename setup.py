import re
from pathlib import Path

from setuptools import find_packages, setup

HISTORY = ["sqlalchemy>=2.0"]
POSTGRESQL = [*HISTORY, "psycopg[binary]>=3.1"]
TEST = [
    *POSTGRESQL,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "trustme>=1.1",
    "hypothesis>=6.100",
    "coverage>=7.5",
    # Hosts that load a client and fork; nothing in tq_broker imports them.
    "celery>=5.7",
    "gunicorn>=23",
]
LINT = ["ruff>=0.11", "import-linter>=2.3"]
TYPES = [*POSTGRESQL, "mypy>=1.15"]
# The neighbours that benchmarks compare with; nothing in tq_broker imports them.
BENCH = [
    "celery>=5.7",
    "dbos>=3",
    "dramatiq[rabbitmq,redis]>=2.2",
    "faststream[rabbit]>=0.7",
    "matplotlib>=3.7",
    "repid[amqp]>=2.1",
    "taskiq>=0.13",
    "taskiq-aio-pika>=0.6",
    "taskiq-redis>=1.2",
    "uvloop>=0.19",
]

package = Path(__file__).parent / "tq_broker"
version = re.search(r'__version__ = "(.+)"', (package / "__init__.py").read_text())[1]
readme = Path(__file__).with_name("README.rst")

setup(
    name="tq-broker",
    version=version,
    description="Temporal-style task queues for the RabbitMQ you already run",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/x-rst",
    author="tq_broker contributors",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["tq_broker", "tq_broker.*"]),
    package_data={"tq_broker": ["py.typed", "**/*.txt"]},
    entry_points={"console_scripts": ["tq-broker = tq_broker.cli.main:main"]},
    install_requires=[
        # 5.4.2: writes of two threads on one connection do not mix (a hosted worker does so).
        "amqp>=5.4.2",
        "click>=8.1",
        "kombu>=5.5",
        "msgspec>=0.19",
        "pika>=1.3",
        'tomli>=2; python_version < "3.11"',
    ],
    extras_require={
        "history": HISTORY,
        "postgresql": POSTGRESQL,
        "test": TEST,
        "lint": LINT,
        "types": TYPES,
        "bench": BENCH,
        "dev": [*TEST, *LINT, *TYPES, "tox>=4.21"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
