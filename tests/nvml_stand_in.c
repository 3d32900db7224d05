/* A stand-in for the NVML library: two devices whose power follows a script, and a counter of the energy of that power.
 * A third handle is a partition (MIG) of the first, which has memory but no power of its own.
 *
 * Time is the monotonic clock since the library was loaded, or what stand_in_set_time() says. The environment scripts:
 * HOWLOW_NVML_MILLIWATTS   constant power of both devices (default 100000)
 * HOWLOW_NVML_CURVE        "seconds:milliwatts,..." instead: linear between the points, constant outside
 * HOWLOW_NVML_PERIOD_MS    the counter is renewed this often (default: at every reading)
 * HOWLOW_NVML_JITTER      a renewal comes by up to this share of the period earlier or later (default 0)
 * HOWLOW_NVML_LAG_MS      the counter shows the energy of so long ago (default 0)
 * HOWLOW_NVML_LATE        "n:periods": every n-th renewal comes that much late, and then shows all
 * HOWLOW_NVML_FROZEN      "from:to": between these seconds the counter stands still; what is drawn meanwhile is lost
 * HOWLOW_NVML_RESET_AT    seconds at which the counter starts again at 0
 * HOWLOW_NVML_LATENCY_US  a question for the counter takes this long (default 0)
 * HOWLOW_NVML_OFFSET_MS   the second device renews its counter this much later than the first (default 0)
 * HOWLOW_NVML_STEP_MJ      the counter rises in steps of this size (default 1)
 * HOWLOW_NVML_WRAP_MJ      the counter starts again at 0 here (default: never)
 * HOWLOW_NVML_START_MJ     the counter's value at time 0 (default 1000000)
 * HOWLOW_NVML_WAVE         "milliwatts:seconds:share" on top of it: so much for that share of each period, else nothing;
 *                          a share of a half is a square wave, a small one a spike
 * HOWLOW_NVML_SENSOR_MS    "window:period": a power sensor that takes the mean of the last window, once a period, and is
 *                          blind for the rest of it (default: the power of each moment)
 * HOWLOW_NVML_AVERAGE_MS   PowerUsage is the mean of so long a time (default: what the sensor shows)
 * HOWLOW_NVML_INSTANT      if set, what the sensor shows is told as a field value too
 * HOWLOW_NVML_FIELDS       if set, so are the counter, the memory's temperature and the times of throttling
 * HOWLOW_NVML_NO_FIELDS    if set, the question for fields is not supported
 * HOWLOW_NVML_NAME         the name of the model (default "Stand-in")
 * HOWLOW_NVML_UNSUPPORTED  if set, energy and power answer "not supported"
 * HOWLOW_NVML_NO_COUNTER   if set, only the counter does
 * HOWLOW_NVML_DENIED       if set, the counter answers "no permission"
 * HOWLOW_NVML_MUTE         the index of a device that answers "not supported" to energy and power
 * HOWLOW_NVML_GONE         the index of a device that answers "GPU is lost" to all, from the beginning
 * HOWLOW_NVML_LOST_AFTER   seconds after which every question is answered with "GPU is lost"
 * HOWLOW_NVML_HANG_AFTER   seconds after which every question hangs, for HOWLOW_NVML_HANG_S (default 3600) in all
 * HOWLOW_NVML_MIG, _VGPU   if set, the devices are partitioned, virtual
 * HOWLOW_NVML_LIMIT        the enforced power limit in milliwatts (default 300000, the default limit)
 * HOWLOW_NVML_THROTTLE     clocks event reasons (default 0)
 * HOWLOW_NVML_OTHERS       the number of other processes on each device (default 0)
 * Built with -DOLD_DRIVER it lacks what drivers before version 510 lack: the third form of the questions for processes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct device *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } nvmlProcess_t;
typedef union { double d; unsigned int ui; unsigned long long ull; } nvmlValue_t;
typedef struct {
    unsigned int field, scope;
    long long timestamp, latency;
    int type;
    nvmlReturn_t result;
    nvmlValue_t value;
} nvmlFieldValue_t;

enum { SUCCESS, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, ALREADY, NOT_FOUND, INSUFFICIENT_SIZE, LOST = 15 };
enum { POWER_INSTANT = 186, MEMORY_TEMP = 82, ENERGY_FIELD = 83 };
enum { POWER_CAP_TIME = 74, HEAT_TIME = 269, BRAKE_TIME = 271 };
enum { MOST_POINTS = 512 };
static const char *uuids[] = {"GPU-11111111-aaaa", "GPU-22222222-bbbb", "MIG-33333333-cccc"};
static double loaded_s, set_s = -1, times_s[MOST_POINTS], milliwatts[MOST_POINTS];
static int points;
static double wave_mw, wave_period_s, wave_share = 0.5;

static double number(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text ? atof(text) : otherwise;
}

static double monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double now_s(void) { return set_s >= 0 ? set_s : monotonic_s() - loaded_s; }

void stand_in_set_time(double seconds) { set_s = seconds; }

double stand_in_time(void) { return now_s(); }

/* A question that takes a while: the clock that is set by hand moves, the real one is waited for. */
static void spend(double seconds) {
    struct timespec wait = {0, (long)(seconds * 1e9)};
    if (set_s >= 0) set_s += seconds;
    else if (seconds > 0) nanosleep(&wait, NULL);
}

static double pair(const char *name, double *second) {
    double first = -1;
    const char *text = getenv(name);
    if (!text || sscanf(text, "%lf:%lf", &first, second) != 2) return -1;
    return first;
}

void stand_in_set_curve(int count, const double *seconds, const double *mw) {
    points = count;
    memcpy(times_s, seconds, count * sizeof *seconds);
    memcpy(milliwatts, mw, count * sizeof *mw);
}

__attribute__((constructor)) static void load(void) {
    const char *text = getenv("HOWLOW_NVML_CURVE");
    const char *wave = getenv("HOWLOW_NVML_WAVE");
    loaded_s = monotonic_s();
    if (wave) sscanf(wave, "%lf:%lf:%lf", &wave_mw, &wave_period_s, &wave_share);
    for (; text && points < MOST_POINTS; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL)
        points += sscanf(text, "%lf:%lf", &times_s[points], &milliwatts[points]) == 2;
    if (!points) {
        points = 1;
        milliwatts[0] = number("HOWLOW_NVML_MILLIWATTS", 100000);
    }
}

void stand_in_set_wave(double mw, double period_s, double share) {
    wave_mw = mw;
    wave_period_s = period_s;
    wave_share = share;
}

static double wave_power_mw(double t) {
    return wave_period_s > 0 && fmod(t, wave_period_s) < wave_share * wave_period_s ? wave_mw : 0;
}

static double wave_energy_mj(double t) {
    double whole = wave_period_s > 0 ? floor(t / wave_period_s) : 0;
    if (wave_period_s <= 0) return 0;
    return wave_mw * (whole * wave_share * wave_period_s + fmin(t - whole * wave_period_s, wave_share * wave_period_s));
}

static double power_mw(double t), energy_mj(double t);

/* What a sensor shows that sees only the end of each of its periods. */
static double sensor_mw(double t) {
    double window, period;
    const char *text = getenv("HOWLOW_NVML_SENSOR_MS");
    if (!text || sscanf(text, "%lf:%lf", &window, &period) != 2) return power_mw(t);
    window /= 1000;
    t = floor(t / (period / 1000)) * (period / 1000);
    return t < window ? power_mw(t) : (energy_mj(t) - energy_mj(t - window)) / window;
}

static double usage_mw(double t) {
    double window = number("HOWLOW_NVML_AVERAGE_MS", 0) / 1000;
    return window > 0 && t > window ? (energy_mj(t) - energy_mj(t - window)) / window : sensor_mw(t);
}

/* Nanoseconds in which the clocks were lowered, where the scripted reasons hold all the time. */
static unsigned long long throttled_ns(unsigned int field) {
    unsigned int reasons = (unsigned int)number("HOWLOW_NVML_THROTTLE", 0);
    unsigned int bit = field == POWER_CAP_TIME ? 0x4 : field == HEAT_TIME ? 0x20 : field == BRAKE_TIME ? 0x80 : 0x40;
    return reasons & bit ? (unsigned long long)(now_s() * 1e9) : 0;
}

static double curve_mw(double t) {
    if (t <= times_s[0]) return milliwatts[0];
    for (int i = 1; i < points; i++)
        if (t <= times_s[i])
            return milliwatts[i - 1]
                + (milliwatts[i] - milliwatts[i - 1]) * (t - times_s[i - 1]) / (times_s[i] - times_s[i - 1]);
    return milliwatts[points - 1];
}

static double power_mw(double t) { return curve_mw(t) + wave_power_mw(t); }

static double energy_mj(double t) {
    double sum = wave_energy_mj(t), from = 0;
    if (t <= 0) return curve_mw(0) * t;
    for (int i = 0; i < points && from < t; i++) {
        double to = times_s[i] < t ? times_s[i] : t;
        if (to > from) { sum += (to - from) * (curve_mw(from) + curve_mw(to)) / 2; from = to; }
    }
    return from < t ? sum + (t - from) * curve_mw(t) : sum;
}

static int is_mute(nvmlDevice_t device) { return (double)(size_t)device - 1 == number("HOWLOW_NVML_MUTE", -1); }

/* Every question passes here: it may hang, or the device may be gone. */
static nvmlReturn_t asked(void) {
    double hang = number("HOWLOW_NVML_HANG_AFTER", -1), lost = number("HOWLOW_NVML_LOST_AFTER", -1);
    double until = hang + number("HOWLOW_NVML_HANG_S", 3600);
    while (hang >= 0 && now_s() >= hang && now_s() < until) {
        struct timespec wait = {0, 10000000};
        nanosleep(&wait, NULL);
    }
    return lost >= 0 && now_s() >= lost ? LOST : SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
nvmlReturn_t nvmlInit_v2(void) { return SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t result) { (void)result; return "stand-in error"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "999.01");
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 1) return NOT_FOUND; /* a partition is found by its UUID only */
    if (index == number("HOWLOW_NVML_GONE", -1)) return LOST;
    *device = (nvmlDevice_t)(size_t)(index + 1);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (number("HOWLOW_NVML_GONE", -1) >= 0) return LOST; /* as the library does where any has fallen off the bus */
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(uuid, uuids[i])) { *device = (nvmlDevice_t)(i + 1); return SUCCESS; }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t partition, nvmlDevice_t *device) {
    if ((size_t)partition != 3) return INVALID;
    *device = (nvmlDevice_t)(size_t)1;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "%s", uuids[(size_t)device - 1]);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    const char *model = getenv("HOWLOW_NVML_NAME");
    snprintf(name, length, "%s %zu", model ? model : "Stand-in", (size_t)device);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture) {
    (void)device;
    *architecture = 7;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetC2cModeInfoV(nvmlDevice_t device, void *info) { (void)device; (void)info; return NOT_SUPPORTED; }

/* When the n-th renewal comes. */
static double renewal_s(double n, double period, double offset) {
    double late, every = pair("HOWLOW_NVML_LATE", &late), jitter = number("HOWLOW_NVML_JITTER", 0);
    double noise = fmod(fabs(sin(n * 12.9898 + 1) * 43758.5453), 1) * 2 - 1;
    if (every < 1 || fmod(n, every) != 0) late = 0;
    return (n + jitter * noise + late) * period + offset;
}

/* The last renewal up to a moment. */
static double renewed_s(double t, double period, double offset) {
    double n = floor((t - offset) / period) + 1, last = -1e9;
    for (int back = 0; back < 12; back++) {
        double at = renewal_s(n - back, period, offset);
        if (at <= t && at > last) last = at;
    }
    return last;
}

/* What the counter has summed up when it is renewed at this moment. */
static double shown_mj(double t) {
    double lag = number("HOWLOW_NVML_LAG_MS", 0) / 1000, resumed, reset = number("HOWLOW_NVML_RESET_AT", -1);
    double frozen = pair("HOWLOW_NVML_FROZEN", &resumed), sum = energy_mj(t - lag);
    if (frozen >= 0 && t > frozen) sum -= energy_mj((t < resumed ? t : resumed) - lag) - energy_mj(frozen - lag);
    return reset >= 0 && t >= reset ? sum - energy_mj(reset - lag) : sum;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    double period = number("HOWLOW_NVML_PERIOD_MS", 0) / 1000, step = number("HOWLOW_NVML_STEP_MJ", 1);
    double wrap = number("HOWLOW_NVML_WRAP_MJ", 0), start = number("HOWLOW_NVML_START_MJ", 1000000), t, value;
    double latency = number("HOWLOW_NVML_LATENCY_US", 0) / 1e6, reset = number("HOWLOW_NVML_RESET_AT", -1);
    nvmlReturn_t result = asked();
    if (result) return result;
    if (getenv("HOWLOW_NVML_UNSUPPORTED") || getenv("HOWLOW_NVML_NO_COUNTER")) return NOT_SUPPORTED;
    if ((size_t)device == 3 || is_mute(device)) return NOT_SUPPORTED;
    if (getenv("HOWLOW_NVML_DENIED")) return NO_PERMISSION;
    spend(latency / 2);
    t = now_s();
    if (period > 0) t = renewed_s(t, period, (double)((size_t)device - 1) * number("HOWLOW_NVML_OFFSET_MS", 0) / 1000);
    value = (reset >= 0 && t >= reset ? 1 : start) + shown_mj(t) + (double)(size_t)device;
    value = floor(value / step) * step;
    spend(latency / 2);
    *millijoules = (unsigned long long)(wrap > 0 ? fmod(value, wrap) : value);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power) {
    nvmlReturn_t result = asked();
    if (result) return result;
    if (getenv("HOWLOW_NVML_UNSUPPORTED") || (size_t)device == 3 || is_mute(device)) return NOT_SUPPORTED;
    *power = (unsigned int)usage_mw(now_s());
    return SUCCESS;
}

static nvmlReturn_t tell_field(nvmlDevice_t device, nvmlFieldValue_t *value) {
    if (value->field == POWER_INSTANT && getenv("HOWLOW_NVML_INSTANT")) {
        value->value.ui = (unsigned int)sensor_mw(now_s());
        return SUCCESS;
    }
    if (!getenv("HOWLOW_NVML_FIELDS")) return NOT_SUPPORTED;
    if (value->field == ENERGY_FIELD) return nvmlDeviceGetTotalEnergyConsumption(device, &value->value.ull);
    if (value->field == MEMORY_TEMP) { value->value.ui = 77; return SUCCESS; }
    if (value->field == POWER_CAP_TIME || (value->field >= HEAT_TIME && value->field <= BRAKE_TIME)) {
        value->value.ull = throttled_ns(value->field);
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    nvmlReturn_t result = asked();
    if (result) return result;
    if ((size_t)device == 3 || is_mute(device) || getenv("HOWLOW_NVML_NO_FIELDS")) return NOT_SUPPORTED;
    for (int i = 0; i < count; i++) {
        values[i].value.ull = 0;
        values[i].result = tell_field(device, &values[i]);
    }
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlReturn_t result = asked();
    if (result) return result;
    memory->total = 80ULL << 30;
    memory->used = (unsigned long long)(size_t)device << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    (void)device;
    rates->gpu = 87;
    rates->memory = 40;
    return asked();
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *degrees) {
    (void)device;
    (void)sensor;
    *degrees = 61;
    return asked();
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int which, unsigned int *megahertz) {
    (void)device;
    *megahertz = which == 1 ? 1410 : 1593;
    return asked();
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    (void)device;
    *reasons = (unsigned long long)number("HOWLOW_NVML_THROTTLE", 0);
    return asked();
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit) {
    (void)device;
    *limit = (unsigned int)number("HOWLOW_NVML_LIMIT", 300000);
    return asked();
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *limit) {
    (void)device;
    *limit = 300000;
    return asked();
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    (void)device;
    *current = *pending = getenv("HOWLOW_NVML_MIG") != NULL;
    return asked();
}

nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, unsigned int *mode) {
    (void)device;
    *mode = getenv("HOWLOW_NVML_VGPU") ? 2 : 0;
    return asked();
}

#ifdef OLD_DRIVER
#define nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetComputeRunningProcesses_v2
#define nvmlDeviceGetGraphicsRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v2
#endif

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcess_t *found) {
    unsigned int others = (unsigned int)number("HOWLOW_NVML_OTHERS", 0), room = *count;
    const char *own = getenv("HOWLOW_NVML_OWN"); /* the bytes of the process that asks; -1: not told */
    (void)device;
    *count = others + (own != NULL);
    if (*count > room) return INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < others; i++) found[i] = (nvmlProcess_t){4000000 + i, 1 << 20, 0, 0};
    if (own) found[others] = (nvmlProcess_t){(unsigned int)getpid(), (unsigned long long)atoll(own), 0, 0};
    return asked();
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcess_t *found) {
    (void)device;
    (void)found;
    *count = 0;
    return SUCCESS;
}
