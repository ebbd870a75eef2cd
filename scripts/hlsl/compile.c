// Compiles HLSL with Microsoft's compilers, as wgpu calls them: FXC (d3dcompiler_47.dll) for shader model 5, DXC
// (dxcompiler.dll) for 6. For Windows, or Wine (scripts/shader-check).
//
//   compile LIST      LIST has lines "FILE ENTRY TARGET"; prints "FILE<tab>COMPILER<tab>ok<tab>MILLISECONDS", or in the
//                     place of ok the first error that the compiler reports. Fails if some shader does not compile.
#define COBJMACROS
#define INITGUID
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <windows.h>
#include <d3dcompiler.h>

// Of dxcapi.h, which MinGW has not, the part that is used; the order of the entries is the interface.
typedef struct { LPCVOID data; SIZE_T size; UINT encoding; } DxcBuffer;
typedef struct Blob Blob;
struct Blob {
    struct {
        void *query_interface, *add_ref;
        ULONG(WINAPI *release)(Blob *);
        LPVOID(WINAPI *data)(Blob *);
        SIZE_T(WINAPI *size)(Blob *);
    } const *calls;
};
typedef struct Outcome Outcome;
struct Outcome {
    struct {
        void *query_interface, *add_ref;
        ULONG(WINAPI *release)(Outcome *);
        HRESULT(WINAPI *status)(Outcome *, HRESULT *);
        HRESULT(WINAPI *result)(Outcome *, Blob **);
        HRESULT(WINAPI *errors)(Outcome *, Blob **);
    } const *calls;
};
typedef struct Compiler Compiler;
struct Compiler {
    struct {
        void *query_interface, *add_ref, *release;
        HRESULT(WINAPI *compile)(Compiler *, const DxcBuffer *, LPCWSTR *, UINT32, void *, REFIID, Outcome **);
    } const *calls;
};
DEFINE_GUID(COMPILER_CLASS, 0x73e22d93, 0xe6ce, 0x47f3, 0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0);
DEFINE_GUID(COMPILER, 0x228b4687, 0x5a6a, 0x4730, 0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54);
DEFINE_GUID(OUTCOME, 0x58346cda, 0xdde7, 0x4497, 0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59);

typedef HRESULT(WINAPI *Create)(REFCLSID, REFIID, void **);

// The first error, or the first line; without its line end.
static void say(const char *text, size_t size) {
    const char *from = text;
    for (const char *at = text; at && at + 5 < text + size && *at; at++) {
        if (!strncmp(at, "error", 5)) {
            for (from = at; from > text && from[-1] != '\n'; from--) {}
            break;
        }
    }
    for (; from && from < text + size && *from && *from != '\n' && *from != '\r'; from++) putchar(*from);
}

static int fxc(pD3DCompile compile, const char *text, size_t size, const char *entry, const char *target) {
    ID3DBlob *code = NULL, *errors = NULL;
    HRESULT status = compile(text, size, NULL, NULL, NULL, entry, target, D3DCOMPILE_ENABLE_STRICTNESS, 0, &code, &errors);
    if (SUCCEEDED(status)) printf("ok");
    else if (errors) say(ID3D10Blob_GetBufferPointer(errors), ID3D10Blob_GetBufferSize(errors));
    else printf("error %08lx", status);
    if (code) ID3D10Blob_Release(code);
    if (errors) ID3D10Blob_Release(errors);
    return SUCCEEDED(status);
}

static int dxc(Compiler *compiler, const char *text, size_t size, const char *entry, const char *target) {
    WCHAR wide_entry[256], wide_target[32];
    swprintf(wide_entry, 256, L"%hs", entry);
    swprintf(wide_target, 32, L"%hs", target);
    LPCWSTR arguments[] = {L"-E", wide_entry, L"-T", wide_target, L"-HV", L"2018", L"-no-warnings", L"-enable-16bit-types"};
    DxcBuffer source = {text, size, 65001};
    Outcome *outcome = NULL;
    HRESULT status = compiler->calls->compile(compiler, &source, arguments, 8, NULL, &OUTCOME, &outcome);
    if (SUCCEEDED(status)) outcome->calls->status(outcome, &status);
    Blob *errors = NULL;
    if (SUCCEEDED(status)) printf("ok");
    else if (outcome && SUCCEEDED(outcome->calls->errors(outcome, &errors)) && errors) {
        say(errors->calls->data(errors), errors->calls->size(errors));
        errors->calls->release(errors);
    } else printf("error %08lx", status);
    if (outcome) outcome->calls->release(outcome);
    return SUCCEEDED(status);
}

static char *read_all(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *text = malloc(*size + 1);
    *size = fread(text, 1, *size, file);
    text[*size] = 0;
    fclose(file);
    return text;
}

int main(int count, char **arguments) {
    HMODULE old = LoadLibraryA("d3dcompiler_47.dll"), new = LoadLibraryA("dxcompiler.dll");
    FILE *list = count == 2 ? fopen(arguments[1], "r") : NULL;
    if (!old || !new || !list) {
        fprintf(stderr, "compile: needs d3dcompiler_47.dll and dxcompiler.dll beside it, and a list\n");
        return 2;
    }
    pD3DCompile compile = (pD3DCompile)(void *)GetProcAddress(old, "D3DCompile");
    Create create = (Create)(void *)GetProcAddress(new, "DxcCreateInstance");
    Compiler *compiler = NULL;
    if (!compile || !create || FAILED(create(&COMPILER_CLASS, &COMPILER, (void **)&compiler))) {
        fprintf(stderr, "compile: a compiler does not start\n");
        return 2;
    }
    char path[1024], entry[256], target[32];
    int failed = 0;
    while (fscanf(list, "%1023s %255s %31s", path, entry, target) == 3) {
        int is_old = !strncmp(target, "cs_5", 4);
        size_t size = 0;
        char *text = read_all(path, &size);
        LARGE_INTEGER before, after, rate;
        QueryPerformanceFrequency(&rate);
        printf("%s\t%s\t", path, is_old ? "fxc" : "dxc");
        QueryPerformanceCounter(&before);
        int good = text && (is_old ? fxc(compile, text, size, entry, target) : dxc(compiler, text, size, entry, target));
        if (!text) printf("cannot be read");
        QueryPerformanceCounter(&after);
        printf("\t%.0f\n", 1e3 * (after.QuadPart - before.QuadPart) / rate.QuadPart);
        fflush(stdout);
        failed += !good;
        free(text);
    }
    fclose(list);
    return failed > 0;
}
