/* A stand-in for the NVML library: two devices, watts and a counter that the environment scripts.
 *
 * HOWLOW_NVML_MILLIWATTS       power of both devices; the counter rises by it (default 100000)
 * HOWLOW_NVML_UNSUPPORTED      if set, energy and power answer "not supported"
 * HOWLOW_NVML_NO_COUNTER       if set, only the counter does
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int nvmlReturn_t;
typedef struct device *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
static const char *uuids[] = {"GPU-11111111-aaaa", "GPU-22222222-bbbb"};

static unsigned int milliwatts(void) {
    const char *asked = getenv("HOWLOW_NVML_MILLIWATTS");
    return asked ? (unsigned int)atoi(asked) : 100000;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
nvmlReturn_t nvmlInit_v2(void) { return SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t result) { (void)result; return "stand-in error"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "999.01");
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(uuid, uuids[i])) { *device = (nvmlDevice_t)(size_t)(i + 1); return SUCCESS; }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    struct timespec now;
    if (getenv("HOWLOW_NVML_UNSUPPORTED") || getenv("HOWLOW_NVML_NO_COUNTER")) return NOT_SUPPORTED;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = (unsigned long long)((now.tv_sec + now.tv_nsec * 1e-9) * milliwatts()) + (size_t)device;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power) {
    (void)device;
    if (getenv("HOWLOW_NVML_UNSUPPORTED")) return NOT_SUPPORTED;
    *power = milliwatts();
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = 80ULL << 30;
    memory->used = (unsigned long long)(size_t)device << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    (void)device;
    rates->gpu = 87;
    rates->memory = 40;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *degrees) {
    (void)device;
    (void)sensor;
    *degrees = 61;
    return SUCCESS;
}
