from fedavg.adapters.flower import statistics_app

app = statistics_app()
