"""Declares the part of libbpf that eastwest calls; cffi binds it in API mode: the C compiler checks it."""

import cffi

ffi = cffi.FFI()

ffi.cdef("""
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
typedef int32_t __s32; typedef int64_t __s64;

/* objects, programs, maps */
struct bpf_object; struct bpf_program; struct bpf_map; struct bpf_link;
struct bpf_object_open_opts { size_t sz; const char *pin_root_path; ...; };
struct bpf_object *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
const char *bpf_program__name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
__u32 bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
int bpf_map__set_inner_map_fd(struct bpf_map *map, int fd);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__set_initial_value(struct bpf_map *map, const void *data, size_t size);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
int libbpf_num_possible_cpus(void);
struct bpf_insn { __u8 code; ...; };
struct bpf_prog_load_opts { size_t sz; __u32 log_level; __u32 log_size; char *log_buf; ...; };
int bpf_prog_load(int prog_type, const char *prog_name, const char *license, const struct bpf_insn *insns,
                  size_t insn_cnt, const struct bpf_prog_load_opts *opts);

/* maps by descriptor */
struct bpf_map_create_opts { size_t sz; __u32 map_flags; ...; };
int bpf_map_create(int map_type, const char *map_name, __u32 key_size, __u32 value_size, __u32 max_entries,
                   const struct bpf_map_create_opts *opts);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
struct bpf_map_batch_opts { size_t sz; __u64 elem_flags; __u64 flags; };
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                         __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_lookup_and_delete_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                                    __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct bpf_map_batch_opts *opts);

/* pins, links, filters, statistics */
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);
struct bpf_link_create_opts { size_t sz; __u32 flags; ...; };
int bpf_link_create(int prog_fd, int target_fd, int attach_type, const struct bpf_link_create_opts *opts);
int bpf_link_detach(int link_fd);
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);
struct bpf_link *bpf_program__attach(const struct bpf_program *prog);
int bpf_link__destroy(struct bpf_link *link);
int bpf_enable_stats(int type);
struct bpf_prog_info { __u32 id; __u64 run_time_ns; __u64 run_cnt; ...; };
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, __u32 *info_len);

struct bpf_tc_hook { size_t sz; int ifindex; int attach_point; ...; };
struct bpf_tc_opts { size_t sz; int prog_fd; __u32 flags; __u32 prog_id; __u32 handle; __u32 priority; ...; };
int bpf_tc_hook_create(struct bpf_tc_hook *hook);
int bpf_tc_attach(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int bpf_tc_detach(const struct bpf_tc_hook *hook, const struct bpf_tc_opts *opts);

struct __sk_buff { __u32 len; __u32 mark; __u32 vlan_present; __u32 vlan_tci; __u32 ifindex; __u32 cb[5];
    __u32 data; __u32 data_end; __u32 gso_segs; __u32 gso_size; ...; };
struct bpf_test_run_opts { size_t sz; const void *data_in; void *data_out; __u32 data_size_in;
    __u32 data_size_out; const void *ctx_in; void *ctx_out; __u32 ctx_size_in; __u32 ctx_size_out;
    __u32 retval; int repeat; __u32 duration; __u32 flags; ...; };
int bpf_prog_test_run_opts(int prog_fd, struct bpf_test_run_opts *opts);

/* events */
struct ring_buffer;
typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn fn, void *ctx, const void *opts);
void ring_buffer__free(struct ring_buffer *rb);
int ring_buffer__consume(struct ring_buffer *rb);
int ring_buffer__epoll_fd(const struct ring_buffer *rb);
extern "Python" int ring_buffer_event(void *ctx, void *data, size_t size);

/* rings in mapped memory */
#define RING_PAGE ...
#define RING_BEYOND ...
struct ring { __u64 wake_at; ...; };
__u64 east_ring_waiting(struct ring *ring);
int east_ring_arm(struct ring *ring, __u64 backlog);
__u64 east_ring_pending(struct ring *ring, __u64 mask);

/* rings in the order of time */
struct merge_cursor { struct ring *ring; ...; };
struct iovec { void *iov_base; size_t iov_len; };
struct merge { __u64 mask; __u64 left; __u32 first; struct iovec pieces[...]; ...; };
struct merge_limits { __u64 old; __u64 until; __u64 bytes; };
int east_merge_look(struct merge *merge, struct merge_cursor *cursors, __u32 count,
                    const struct merge_limits *limits);
long east_merge_send(struct merge *merge, int socket);
size_t east_merge_gather(const struct merge *merge, unsigned char *to, size_t room);
__u64 east_merge_sent(struct merge *merge, size_t bytes);

/* types */
struct btf;
struct btf_type { __u32 name_off; __u32 info; union { __u32 size; __u32 type; }; };
struct btf_member { __u32 name_off; __u32 type; __u32 offset; };
struct btf_array { __u32 type; __u32 index_type; __u32 nelems; };
struct btf_enum { __u32 name_off; __s32 val; };
struct btf *btf__parse(const char *path, void *btf_ext);
struct btf *btf__load_vmlinux_btf(void);
void btf__free(struct btf *btf);
__s32 btf__find_by_name_kind(const struct btf *btf, const char *name, __u32 kind);
const struct btf_type *btf__type_by_id(const struct btf *btf, __u32 id);
const char *btf__name_by_offset(const struct btf *btf, __u32 offset);
struct btf_member *east_btf_members(const struct btf_type *t);
struct btf_array *east_btf_array(const struct btf_type *t);
struct btf_enum *east_btf_enum(const struct btf_type *t);

/* the host */
int setns(int fd, int nstype);
int unshare(int flags);
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
#define M_TRIM_THRESHOLD ...
#define M_MMAP_THRESHOLD ...
#define M_ARENA_MAX ...
int mallopt(int parameter, int value);

/* messages */
void east_capture_log(char *buffer, size_t size);
""")

ffi.set_source(
    "eastwest.kernel._libbpf",
    r"""
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stdarg.h>
    #include <stdio.h>
    #include <malloc.h>
    #include <sched.h>
    #include <sys/mount.h>
    #include <bpf/bpf.h>
    #include <bpf/btf.h>
    #include <bpf/libbpf.h>
    #include "merging.h"

    static struct btf_member *east_btf_members(const struct btf_type *t) { return btf_members(t); }
    static struct btf_array *east_btf_array(const struct btf_type *t) { return btf_array(t); }
    static struct btf_enum *east_btf_enum(const struct btf_type *t) { return btf_enum(t); }

    /* libbpf explains a refusal only by its print callback: keep the text for the exception. */
    static char *log_text;
    static size_t log_room;

    static int keep_message(enum libbpf_print_level level, const char *format, va_list args)
    {
        int n;

        if (level == LIBBPF_DEBUG || !log_text || log_room < 2)
            return 0;
        n = vsnprintf(log_text, log_room, format, args);
        if (n > 0) {
            size_t used = (size_t)n < log_room ? (size_t)n : log_room - 1;
            log_text += used;
            log_room -= used;
        }
        return n;
    }

    static void east_capture_log(char *buffer, size_t size)
    {
        log_text = buffer;
        log_room = size;
        if (buffer && size)
            buffer[0] = 0;
        libbpf_set_print(keep_message);
    }
    """,
    libraries=["bpf"],
    include_dirs=["src/eastwest/kernel/include"],
    depends=[f"src/eastwest/kernel/include/{name}.h" for name in ("merging", "pcapng", "reading", "ring")],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
