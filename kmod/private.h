/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 * A user's call goes ops.c (op table) -> one handler in the file of its object
 * -> the kernel's DMA API.
 *
 * Lock order:
 *
 *	dmaprobe_device::unplug_lock	read: every op; write: unplug, ops that
 *					need all others to stand still
 *	  dmaprobe_device::lock		the list of sessions, who has the MMIO
 *	  dmaprobe_iova::lock		one IOVA space
 *	    xa_lock of dmaprobe_session::objects
 *	  dmaprobe_pool::lock		how much of a pool is in use
 *	  mmap_lock			revoking
 *	    dma_buf::resv		one dma-buf: who maps it, revoking it
 *	      dmaprobe_allocation::lock	who mmaps or exports an allocation
 *
 * mmap() and what becomes of it run under mmap_lock, so they must not take
 * unplug_lock. What other devices' users do to a dma-buf runs under the lock of its
 * reservation object; that neither copies from user space nor takes unplug_lock.
 *
 * No fault of the caller's memory is waited for under any of these: who serves the
 * fault may be the caller, and take as long as he likes, while unplug waits.
 */
#ifndef DMAPROBE_PRIVATE_H
#define DMAPROBE_PRIVATE_H

#include <linux/cdev.h>
#include <linux/cleanup.h>
#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include <linux/dmaprobe.h>

struct dma_buf;
struct dmaprobe_copy_part;
struct dmaprobe_object;
struct dmaprobe_session;
struct scatterlist;
struct io_uring_cmd;
struct user_struct;

/* Who may use the device's BARs and its bus mastering. */
enum dmaprobe_mmio_owner {
	DMAPROBE_MMIO_NONE,
	DMAPROBE_MMIO_SESSION,	/* sessions that asked with DMAPROBE_ENABLE */
	DMAPROBE_MMIO_VFIO,	/* the VFIO device is open */
};

/*
 * A bound device. It lives until its last session is closed, which may be long
 * after the device is gone.
 */
struct dmaprobe_device {
	struct device dev;
	struct cdev cdev;

	/* Fixed from probe to unplug. */
	struct iommu_domain *domain;	/* of the DMA API; NULL without IOMMU */
	u64 bound_mask;			/* as found at probe */
	u64 bound_coherent_mask;
	u64 bound_boundary;
	u32 bound_max_segment;
	u32 bound_min_align;

	struct rw_semaphore unplug_lock;
	struct pci_dev *pdev;		/* NULL once unplugged */
	size_t direct_max;		/* dma_max_mapping_size() for what is set */

	struct mutex lock;		/* all below */
	struct list_head sessions;
	enum dmaprobe_mmio_owner mmio_owner;
	unsigned int enable_users;
};

/* An open file. */
struct dmaprobe_session {
	struct dmaprobe_device *dd;
	struct list_head node;
	struct inode *inode;		/* through which its memory is mmapped */
	struct xarray objects;
	struct user_struct *user;	/* who is charged; NULL with CAP_IPC_LOCK */
	atomic_long_t nr_pages;		/* charged */
	atomic_long_t nr_pinned;	/* pages of user memory */
	bool enabled;			/* under dmaprobe_device::lock */
};

/* One call of an op, whichever way it came in. */
struct dmaprobe_ucmd {
	struct dmaprobe_session *session;
	void __user *ubuffer;
	u32 user_size;
	u32 size;
	void *cmd;
	struct dmaprobe_run_state *run;	/* the run it is in, or NULL */
	struct dmaprobe_object *object;	/* that it made, */
	u32 made;			/* and its id; 0 without one */
	bool nonblock;			/* answer EAGAIN rather than sleep */

	/* What is told beside the struct: see dmaprobe_tell(). */
	size_t array_size;
	void *array;
	void __user *array_to;
};

/* What the calls of a run share. */
struct dmaprobe_run_state {
	u32 nr;			/* calls made */
	u32 *ids;		/* that they have made, for DMAPROBE_RUN_ID() */
	bool locked;		/* it holds unplug_lock for reading, and takes no faults */
};

/*
 * Objects. The xarray holds one reference; a user of the object (another object,
 * or a call in flight) holds one more. Release runs at the last put, with the
 * device still there: unplug and close wait for the calls in flight. Buffers are
 * the exception: mmap() can outlast unplug, so their release must not need it.
 */
struct dmaprobe_object_type {
	void (*release)(struct dmaprobe_object *obj);

	/*
	 * Give back what must not outlast the session or the device, though
	 * others may still hold the object. Called once, when the session or the
	 * device goes; release is called as well, and may come much later.
	 */
	void (*revoke)(struct dmaprobe_object *obj);
	bool memory;		/* what others map; torn down after them */
	bool mapping;		/* what DMAPROBE_UNMAP takes */
	bool has_pages;		/* is a struct dmaprobe_memory */
	u16 stats;		/* offset of its count in struct dmaprobe_stats */

	/*
	 * What commands do that take objects of several types; absent where a
	 * type has no use for it. The object is held by the caller.
	 *
	 * mmap() runs without unplug_lock, so the device can go away meanwhile.
	 * copy() is called for one part of a copy after the other, none of which
	 * crosses a page's end in the object; it checks the whole with
	 * dmaprobe_copy_fits(), and moves the part with dmaprobe_copy_part().
	 */
	int (*mmap)(struct dmaprobe_object *obj, struct vm_area_struct *vma,
		    unsigned long first_page);
	int (*copy)(struct dmaprobe_object *obj, const struct dmaprobe_copy *cmd,
		    const struct dmaprobe_copy_part *part);
	int (*sync)(struct dmaprobe_object *obj, const struct dmaprobe_sync *cmd);
	int (*segments)(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd);
};

struct dmaprobe_object {
	const struct dmaprobe_object_type *type;
	struct dmaprobe_session *session;
	struct rcu_head rcu;
	refcount_t refs;
	u32 id;
};

extern const struct dmaprobe_object_type dmaprobe_buffer_type;

/* Marks objects with pages in the xarray, for those who look for one by them. */
#define DMAPROBE_MARK_PAGES	XA_MARK_1

/* object.c */
int dmaprobe_object_reserve(struct dmaprobe_session *s,
			    struct dmaprobe_object *obj,
			    const struct dmaprobe_object_type *type);
void dmaprobe_object_unreserve(struct dmaprobe_object *obj);
void dmaprobe_object_publish(struct dmaprobe_ucmd *ucmd,
			     struct dmaprobe_object *obj);
struct dmaprobe_object *
dmaprobe_object_get(const struct dmaprobe_ucmd *ucmd, u32 id,
		    const struct dmaprobe_object_type *type);
void dmaprobe_object_put(struct dmaprobe_object *obj);

/* One more reference for who has one. */
static inline void dmaprobe_object_hold(struct dmaprobe_object *obj)
{
	refcount_inc(&obj->refs);
}

int dmaprobe_object_destroy(const struct dmaprobe_ucmd *ucmd, u32 id,
			    const struct dmaprobe_object_type *type);
void dmaprobe_object_undo(struct dmaprobe_ucmd *ucmd);
void dmaprobe_objects_teardown(struct dmaprobe_session *s, bool memory);

/* attrs.c */
int dmaprobe_attrs(u64 attrs, u64 taken, unsigned long *out);
int dmaprobe_map_attrs(const struct dmaprobe_session *s, u64 attrs, u64 taken,
		       unsigned long *out);

/* memory.c */

/*
 * The common part of objects that are made of pages: bytes @skew to
 * @skew + @length of the pages, one after the other. Offsets in an object count
 * from its first byte.
 */
struct dmaprobe_memory {
	struct dmaprobe_object obj;
	struct page **pages;	/* NULL: no page can be found */
	u32 *by_pfn;		/* their indices, ascending by page; NULL: one run */
	unsigned long nr_pages;
	u64 length;
	u32 skew;
};

static_assert(offsetof(struct dmaprobe_memory, obj) == 0);

static inline struct dmaprobe_memory *
dmaprobe_obj_memory(struct dmaprobe_object *obj)
{
	return container_of(obj, struct dmaprobe_memory, obj);
}

int dmaprobe_charge(struct dmaprobe_session *s, unsigned long nr);
void dmaprobe_uncharge(struct dmaprobe_session *s, unsigned long nr);

int dmaprobe_memory_index(struct dmaprobe_memory *mem);
void dmaprobe_memory_free(struct dmaprobe_memory *mem);
bool dmaprobe_memory_find(const struct dmaprobe_memory *mem, phys_addr_t phys,
			  u64 expected, u64 *offset, u64 *length);
struct dmaprobe_memory *dmaprobe_memory_get(const struct dmaprobe_ucmd *ucmd,
					    u32 id);
u64 dmaprobe_mmap_offset(u32 id);
int dmaprobe_mmap(struct file *file, struct vm_area_struct *vma);

/* A part of a copy: @length bytes at @offset of the object, and at @data. */
struct dmaprobe_copy_part {
	u64 offset;
	size_t length;
	void *data;
};

void dmaprobe_copy_part(const struct dmaprobe_copy *cmd,
			const struct dmaprobe_copy_part *part, void *kernel);

/* Whether the range of a copy is inside an object of @length bytes. */
static inline bool dmaprobe_copy_fits(const struct dmaprobe_copy *cmd, u64 length)
{
	return cmd->length <= length && cmd->offset <= length - cmd->length;
}

/* buffer.c */
struct dmaprobe_buffer {
	struct dmaprobe_memory mem;
	unsigned long charged;	/* pages */
	void *kmem;		/* of a kmalloc buffer */
	bool pinned;		/* user memory */
	bool read_only;		/* for the device */
};

struct dmaprobe_buffer *dmaprobe_buffer_get(const struct dmaprobe_ucmd *ucmd,
					    u32 id);

/* Also of what dmaprobe_buffer_get() answered when it found none. */
static inline void dmaprobe_buffer_put(struct dmaprobe_buffer *buf)
{
	if (!IS_ERR_OR_NULL(buf))
		dmaprobe_object_put(&buf->mem.obj);
}

DEFINE_FREE(dmaprobe_buffer_put, struct dmaprobe_buffer *, dmaprobe_buffer_put(_T))

int dmaprobe_buffer_range(const struct dmaprobe_buffer *buf, u64 offset,
			  u64 length, u32 dir, phys_addr_t *phys);

/* alloc.c */
struct dmaprobe_allocation {
	struct dmaprobe_memory mem;

	/* Valid while the memory is there. */
	struct device *dev;
	void *cpu;		/* see kernel_address(); coherent memory: a cookie */
	struct sg_table *sgt;	/* noncontiguous memory */
	dma_addr_t addr;
	unsigned long attrs;
	u8 kind;
	u8 dir;

	spinlock_t lock;	/* all below */
	bool gone;		/* revoked, or about to be */
	struct list_head views;
	struct dma_buf *dmabuf;	/* not held */
};

struct dmaprobe_allocation *
dmaprobe_allocation_get(const struct dmaprobe_ucmd *ucmd, u32 id);
int dmaprobe_allocation_mmap(struct dmaprobe_allocation *a,
			     struct vm_area_struct *vma, unsigned long first);
void dmaprobe_allocation_sync(struct dmaprobe_allocation *a, u32 target,
			      u64 offset, u64 length);

/* dmabuf.c */
void dmaprobe_export_revoke(struct dmaprobe_allocation *a);

/* fs.c */
struct inode *dmaprobe_inode_new(void);
void dmaprobe_inode_put(struct inode *inode);

/* mapping.c */
int dmaprobe_check_reach(const struct dmaprobe_device *dd, phys_addr_t phys,
			 size_t length, unsigned long attrs);
int dmaprobe_bar_range(const struct dmaprobe_device *dd, u32 bar, u64 offset,
		       u64 length, phys_addr_t *phys);
int dmaprobe_segments_sg(struct dmaprobe_ucmd *ucmd, struct scatterlist *sgl,
			 unsigned int nents);
int dmaprobe_segments_one(struct dmaprobe_ucmd *ucmd, dma_addr_t addr, size_t length);

/*
 * Whether a call was cancelled: its process is being killed, or it is made in the
 * worker of a ring, who is told by a notification, not by a signal. Those by which
 * io_uring wakes any other thread are no reason.
 */
static inline bool dmaprobe_cancelled(void)
{
	return fatal_signal_pending(current) ||
	       (unlikely(current->flags & PF_IO_WORKER) && signal_pending(current));
}

/* The same for a call that any signal ends. */
static inline bool dmaprobe_interrupted(void)
{
	return task_sigpending(current) || dmaprobe_cancelled();
}

/* ops.c */
int dmaprobe_respond(const struct dmaprobe_ucmd *ucmd);
int dmaprobe_tell(struct dmaprobe_ucmd *ucmd, u64 to, size_t nr, size_t size);
long dmaprobe_ioctl(struct file *file, unsigned int cmd, unsigned long arg);
int dmaprobe_uring_cmd(struct io_uring_cmd *ioucmd, unsigned int issue_flags);

/* main.c */
struct dmaprobe_device *dmaprobe_device_create(struct pci_dev *pdev);
int dmaprobe_device_add(struct dmaprobe_device *dd);
void dmaprobe_device_unplug(struct dmaprobe_device *dd);
void dmaprobe_device_put(struct dmaprobe_device *dd);

/* vfio.c */
int dmaprobe_mmio_enable(struct dmaprobe_session *s);
void dmaprobe_mmio_disable(struct dmaprobe_session *s);
int dmaprobe_vfio_register(void);
void dmaprobe_vfio_unregister(void);

/* Handlers */
int dmaprobe_op_version(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_call(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_limits(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_domain(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_set_mask(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_enable(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_buffer_alloc(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_buffer_free(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_map(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_unmap(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_sync(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_alloc(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_free(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_link(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_sync(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_unlink(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_destroy(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_iova_state(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_translate(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_nop(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_stats(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_run(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_bench(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_set_segments(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_buffer_pin(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_copy(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_map_sg(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_map_resource(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_map_dmabuf(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_segments(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_alloc(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_alloc_free(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_sgtable(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_export(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_pool_create(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_pool_destroy(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_pool_alloc(struct dmaprobe_ucmd *ucmd);
int dmaprobe_op_pool_free(struct dmaprobe_ucmd *ucmd);

static inline struct device *dmaprobe_dma_dev(const struct dmaprobe_session *s)
{
	return &s->dd->pdev->dev;
}

/* Whether an IOMMU translates for the DMA API, so that dma-iommu serves it. */
static inline bool dmaprobe_translates(const struct dmaprobe_device *dd)
{
	return dd->domain && (dd->domain->type & __IOMMU_DOMAIN_DMA_API);
}

/*
 * The smallest unit the IOMMU maps, never larger than a CPU page. An identity
 * domain may have no page sizes at all.
 */
static inline u64 dmaprobe_granule(const struct dmaprobe_device *dd)
{
	unsigned long sizes = dd->domain->pgsize_bitmap;

	return sizes ? 1ULL << __ffs(sizes) : PAGE_SIZE;
}

/*
 * Whether the device takes that many bytes as one segment. Calls that make one of
 * all they are given do not look at its limits themselves.
 */
static inline bool dmaprobe_one_segment(struct device *dev, u64 length)
{
	length = PAGE_ALIGN(length);
	return length <= dma_get_max_seg_size(dev) &&
	       length - 1 <= dma_get_seg_boundary(dev);
}

/* The values of enum dma_data_direction that a mapping can have. */
static inline bool dmaprobe_valid_dir(u32 dir)
{
	return dir <= DMAPROBE_DIR_FROM_DEVICE;
}

#endif /* DMAPROBE_PRIVATE_H */
