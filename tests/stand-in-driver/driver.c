/* A stand-in for NVIDIA's driver, libcuda.so.1 and libnvidia-ml.so.1 in one: it has the functions that CUDA's runtime, ONNX
 * Runtime's provider and `dbcache-trt providers` look for, and says that there is no device. So all that comes before the
 * device runs on a machine without one.
 *
 * It holds nothing of NVIDIA's: only names, types and numbers of the public interface, written here anew.
 *
 * The environment says for what it stands:
 *   STAND_IN_CUDA=12040   the newest CUDA that this driver knows, 1000 * major + 10 * minor (13000 unless set)
 *   STAND_IN_FAILS=803    the error with which the driver fails to start (100, no device, unless set)
 *   STAND_IN_GPU=1        the driver lists a GPU, on which nothing can be done
 *   STAND_IN_CAPABILITY=89  its compute capability, 10 * major + minor (90 unless set)
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76 };

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text != NULL && *text != '\0' ? atoi(text) : otherwise;
}

static int gpus(void) { return number("STAND_IN_GPU", 0); }

CUresult cuInit(unsigned int flags) {
    (void)flags;
    return gpus() > 0 ? SUCCESS : number("STAND_IN_FAILS", NO_DEVICE);
}

CUresult cuDriverGetVersion(int *version) {
    if (version == NULL) return INVALID_VALUE;
    *version = number("STAND_IN_CUDA", 13000);
    return SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    if (count == NULL) return INVALID_VALUE;
    *count = gpus();
    return SUCCESS;
}

CUresult cuDeviceGet(int *device, int ordinal) {
    if (device == NULL || ordinal < 0 || ordinal >= gpus()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    snprintf(name, (size_t)length, "Stand-in GPU");
    return SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)16000000000;
    return SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    int capability = number("STAND_IN_CAPABILITY", 90);
    *value = attribute == COMPUTE_MAJOR ? capability / 10 : attribute == COMPUTE_MINOR ? capability % 10 : 0;
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OF_THE_STAND_IN";
    return SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    (void)error;
    *text = "an error of the stand-in driver";
    return SUCCESS;
}

/* Whatever needs a device. */
static CUresult no_device(void) { return NO_DEVICE; }

/* The libraries look for these when they are loaded. */
CUresult cuTensorMapEncodeTiled(void) { return no_device(); }
CUresult cuTensorMapEncodeIm2col(void) { return no_device(); }
CUresult cuModuleGetFunction(void) { return no_device(); }
CUresult cuModuleLoadData(void) { return no_device(); }
CUresult cuModuleUnload(void) { return no_device(); }
CUresult cuGetExportTable(void) { return no_device(); }
/* And these for the plugin of TensorRT for RTX. */
CUresult cuCtxCreate_v4(void) { return no_device(); }
CUresult cuCtxDestroy_v2(void) { return no_device(); }
CUresult cuCtxGetCurrent(void) { return no_device(); }
CUresult cuCtxPopCurrent_v2(void) { return no_device(); }
CUresult cuCtxPushCurrent_v2(void) { return no_device(); }
CUresult cuCtxSetCurrent(void) { return no_device(); }
CUresult cuDestroyExternalMemory(void) { return no_device(); }
CUresult cuDestroyExternalSemaphore(void) { return no_device(); }
CUresult cuExternalMemoryGetMappedBuffer(void) { return no_device(); }
CUresult cuImportExternalMemory(void) { return no_device(); }
CUresult cuImportExternalSemaphore(void) { return no_device(); }
CUresult cuSignalExternalSemaphoresAsync(void) { return no_device(); }
CUresult cuStreamGetCtx(void) { return no_device(); }
CUresult cuWaitExternalSemaphoresAsync(void) { return no_device(); }
CUresult cuFuncSetAttribute(void) { return no_device(); }
CUresult cuLaunchKernel(void) { return no_device(); }

/* CUDA's runtime takes all other functions of the driver through this one. */
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const struct {
        const char *name;
        void *function;
    } known[] = {
        {"cuInit", (void *)cuInit},
        {"cuDriverGetVersion", (void *)cuDriverGetVersion},
        {"cuDeviceGetCount", (void *)cuDeviceGetCount},
        {"cuDeviceGet", (void *)cuDeviceGet},
        {"cuDeviceGetName", (void *)cuDeviceGetName},
        {"cuDeviceTotalMem", (void *)cuDeviceTotalMem_v2},
        {"cuDeviceGetAttribute", (void *)cuDeviceGetAttribute},
        {"cuGetErrorName", (void *)cuGetErrorName},
        {"cuGetErrorString", (void *)cuGetErrorString},
        {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
    };
    (void)version, (void)flags;
    if (name == NULL || function == NULL) return INVALID_VALUE;
    if (status != NULL) *status = 0;
    *function = (void *)no_device;
    for (size_t index = 0; index < sizeof known / sizeof *known; index++) {
        if (strcmp(name, known[index].name) == 0) *function = known[index].function;
    }
    return SUCCESS;
}

CUresult cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* The library for administration. */
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == SUCCESS ? "success" : "an error of the stand-in driver"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "%s", number("STAND_IN_CUDA", 13000) < 13000 ? "550.54.14" : "580.65.06");
    return SUCCESS;
}
