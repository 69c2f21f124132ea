/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module share.
 *
 * A call goes from a front (ioctl, uring.c, run.c) through dispatch.c to the handler in the file of
 * its object, and from there to the kernel's DMA API.
 *
 * Lock order:
 *
 *	vfio_device_set::lock		VFIO's: what it resets together, opens and closes
 *	dmaprobe_device::lock		the list of sessions; unplug, open and close
 *	  registers_lock		who has the registers: sessions or VFIO
 *	  dmaprobe_session::teardown	one teardown of a session at a time
 *	    dmaprobe_group::turn	calls that want the next one for writing
 *	    dmaprobe_group::lock	read: whatever changes page tables; write: unplug,
 *					changing limits, walking page tables
 *	      dmaprobe_iova::lock	one IOVA space
 *	        xa_lock of dmaprobe_session::objects
 *	      dmaprobe_pool::lock	how much of a pool is in use
 *	      dmaprobe_allocation::exports_lock	its dma-bufs
 *	        dma_buf::resv		who maps a dma-buf, or others of the same allocation
 *	        dmaprobe_group::segments	see there
 *	          dmaprobe_group::walk	see there
 *	          dmaprobe_allocation::lock	who mmaps or exports an allocation
 *
 * mmap() and the VMAs it makes run under mmap_lock, so they must not take dmaprobe_group::lock, nor
 * may anybody wait for mmap_lock, which a program can keep. What other devices' users do to a
 * dma-buf runs under resv, and takes none of the locks above it either.
 *
 * No fault of the caller's memory is taken under any of these: who handles it could stall unplug.
 */
#ifndef DMAPROBE_PRIVATE_H
#define DMAPROBE_PRIVATE_H

#include <linux/cdev.h>
#include <linux/cleanup.h>
#include <linux/device.h>
#include <linux/dma-resv.h>
#include <linux/iommu.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/types.h>
#include <linux/uidgid.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include <linux/dmaprobe.h>

struct dma_buf;
struct dma_buf_attachment;
struct dmaprobe_copy_part;
struct dmaprobe_object;
struct dmaprobe_op;
struct io_uring_cmd;
struct scatterlist;
struct sg_table;
struct user_struct;

/*
 * Devices whose DMA goes through the same page tables: the functions of an IOMMU
 * group. Without an IOMMU, each device has one of its own.
 */
struct dmaprobe_group {
	struct list_head node;
	struct iommu_domain *domain;
	unsigned int users;
	struct rw_semaphore lock;
	struct mutex turn;	/* of those that want the lock for writing, one waits for it */
	struct mutex segments;	/* of those that read an import's segments, one waits for walk */

	/*
	 * Held by a walk of the page tables, by who reads an import's segments, and when an
	 * exporter takes a dma-buf's memory away, which unmaps it without dmaprobe_group::lock.
	 */
	struct mutex walk;
};

/*
 * A bound device. It lives until its last session is closed, which may be long
 * after the device is gone.
 */
struct dmaprobe_device {
	struct device dev;
	struct cdev cdev;
	struct dmaprobe_group *group;

	/* Fixed from probe to unplug. */
	struct iommu_domain *domain;	/* of the DMA API; NULL without IOMMU */
	bool confined;			/* by the IOMMU, with its interrupts */
	u64 bound_mask;			/* as found at probe, at most 32 bits */
	u64 bound_coherent_mask;
	u64 bound_boundary;
	u32 bound_max_segment;
	u32 bound_min_align;

	struct pci_dev *pdev;		/* until everything is torn down */

	/* Written with dmaprobe_group::lock held for writing. */
	bool unplugged;			/* without that lock: READ_ONCE() */
	bool widened;			/* limits that take a privilege are set */
	void *spare;			/* see limits.c */
	dma_addr_t spare_addr;
	size_t direct_max;		/* dma_max_mapping_size() for what is set */

	/* DMA addresses held by unprivileged and by privileged sessions. */
	atomic_long_t nr_addresses[2];
	atomic_long_t nr_pages;		/* of sessions without CAP_IPC_LOCK */

	struct mutex lock;		/* the list */
	struct list_head sessions;

	/* Who has the registers, under a lock of vfio.c. */
	unsigned int enable_users;
	bool resetting;			/* for the next user */
	bool used;			/* since it was bound, */
	kuid_t used_by;			/* and last by whom; invalid: several, or VFIO */
};

/* An open file. */
struct dmaprobe_session {
	struct dmaprobe_device *dd;
	struct list_head node;
	struct inode *inode;		/* through which its memory is mmapped */
	struct xarray objects;
	struct mutex teardown;		/* of all below */
	struct user_struct *user;	/* who is charged; NULL with CAP_IPC_LOCK */
	kuid_t uid;
	u32 id;				/* for traces */
	bool read_only;			/* the file was not opened for writing */
	bool privileged;		/* opened with CAP_SYS_RAWIO */
	bool enabled;			/* under registers_lock */
	atomic_long_t nr_pages;		/* charged */
	atomic_long_t nr_pinned;	/* pages of user memory */
};

/* One call of an op, whichever way it came in. */
struct dmaprobe_ucmd {
	struct dmaprobe_session *session;
	void __user *ubuffer;
	u32 user_size;
	bool nonblock;			/* answer EAGAIN rather than block */
	const struct dmaprobe_op *op;
	void *cmd;
	struct dmaprobe_run_state *run;	/* the run it is in, or NULL */

	/* What it made, hidden until the caller has its answer: see ucmd_reply(). */
	u32 made;			/* id of an object, or 0 */
	struct file *file;		/* with a reference, or NULL */
	int fd;				/* reserved for it */

	/* An array that is written beside the struct: see dmaprobe_reply_array(). */
	void *array;
	size_t array_size;		/* of what is filled in */
	void __user *array_to;

	/* For the trace. */
	u32 id;
	u64 iova;
	u64 length;
};

/* What the calls of a run share. */
struct dmaprobe_run_state {
	u32 nr;				/* calls made */
	struct dmaprobe_run_op *ops;	/* in place of their cmd, the id of what they made */
};

/*
 * Objects. One is in the session's table from the moment there is something to undo, so that
 * teardown finds it. It is hidden there, with a reference count of 0, until the call that made it
 * has answered its caller. From then on the table holds one reference, and each user (another
 * object, an mmap, a call in flight) one more.
 *
 * release() runs when the last reference is put, with dmaprobe_group::lock held for reading, and
 * ends with kfree_rcu(), since lookups may still look. Memory can be held longer, by an mmap or a
 * walk: its release() must not need device or lock unless it was never revoked.
 */
struct dmaprobe_object_type {
	void (*release)(struct dmaprobe_object *obj);

	/* Teardown only: do a bounded part of release(), and return whether there is more. */
	bool (*drain)(struct dmaprobe_object *obj);

	/* Take it from who mmaps or imports it, before revoke(); without dmaprobe_group::lock. */
	void (*disconnect)(struct dmaprobe_object *obj);

	/*
	 * Give back what must not outlast the session or the device, though
	 * others may still hold the object; the address too. Called once, by
	 * teardown, and release() as well, maybe much later.
	 */
	void (*revoke)(struct dmaprobe_object *obj);

	unsigned int end_cmd;	/* DMAPROBE_DESTROY, DMAPROBE_UNMAP or 0 */
	bool has_address;	/* counts as a DMA address */
	bool has_pages;		/* is a struct dmaprobe_memory */
	bool may_block;		/* release() may take long */
	u16 stats;		/* offset of its count in struct dmaprobe_get_stats */

	/*
	 * What commands do that take objects of several types; absent where a
	 * type has no use for it. The object is held by the caller.
	 *
	 * mmap() runs without dmaprobe_group::lock, so the device can go away
	 * meanwhile. copy() is called for one part of a copy after the other, none
	 * of which crosses a page's end in the object; it checks the whole with
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
	u32 nr_addresses;	/* 0: by its type */
	u64 attrs;		/* of a mapping: DMAPROBE_ATTR_* */
};

/* Marks objects with pages in the table, for searches by page. */
#define DMAPROBE_MARK_PAGES	XA_MARK_1

/* object.c */
int dmaprobe_address_get(struct dmaprobe_session *s, u32 n);
void dmaprobe_address_put(struct dmaprobe_session *s, u32 n);
int dmaprobe_object_add(struct dmaprobe_session *s, struct dmaprobe_object *obj,
			const struct dmaprobe_object_type *type);
void dmaprobe_object_cancel(struct dmaprobe_object *obj);
void dmaprobe_object_made(struct dmaprobe_ucmd *ucmd, struct dmaprobe_object *obj);
void dmaprobe_object_show(struct dmaprobe_session *s, u32 id);
void dmaprobe_object_withdraw(struct dmaprobe_session *s, u32 id);
u32 dmaprobe_resolve_id(struct dmaprobe_ucmd *ucmd, u32 id);
struct dmaprobe_object *
dmaprobe_object_get(struct dmaprobe_ucmd *ucmd, u32 id, const struct dmaprobe_object_type *type);
void dmaprobe_object_put(struct dmaprobe_object *obj);
void dmaprobe_objects_teardown(struct dmaprobe_session *s);

/* Hold an object of the table, unless it is hidden or about to go: it is complete then. */
static inline bool dmaprobe_object_tryget(struct dmaprobe_object *obj)
{
	return refcount_inc_not_zero_acquire(&obj->refs);
}

/* Take another reference; the caller must hold one. */
static inline void dmaprobe_object_hold(struct dmaprobe_object *obj)
{
	refcount_inc(&obj->refs);
}

/* attrs.c */
u64 dmaprobe_attrs_offered(void);
unsigned long dmaprobe_kernel_attrs(u64 attrs);
int dmaprobe_check_attrs(u64 attrs, u64 taken);
int dmaprobe_check_map_attrs(const struct dmaprobe_session *s, u64 attrs, u64 taken);
unsigned long dmaprobe_map_attrs(const struct dmaprobe_session *s, u64 attrs);

/* memory.c */

/*
 * What is allocated under dmaprobe_group::lock, for which others may wait: nothing is written
 * out to make room, nobody is killed, nothing is logged, and it is given up early. A failure is
 * the caller's to deal with. What the DMA API allocates is not charged to the memory cgroup,
 * which can put the caller to sleep for that; the session's limits count. Arrays do not need it.
 */
#define DMAPROBE_GFP		(GFP_NOIO | __GFP_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY)
#define DMAPROBE_ARRAY_GFP	(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL)
#define DMAPROBE_ALLOC_GFP	(GFP_NOIO | __GFP_ZERO | __GFP_NOWARN | __GFP_NORETRY)

/*
 * The common part of objects that are made of pages: @length bytes from @first_offset on, of the
 * pages one after the other. Offsets in an object count from its first byte.
 */
struct dmaprobe_memory {
	struct dmaprobe_object obj;
	struct page **pages;	/* NULL: the kernel does not know them */
	u32 *by_pfn;		/* their indices, ascending by page; NULL: one run */
	unsigned long nr_pages;
	u64 length;
	u32 first_offset;
};

bool dmaprobe_count_below(atomic_long_t *count, unsigned long nr, unsigned long limit);
int dmaprobe_charge(struct dmaprobe_session *s, unsigned long nr);
void dmaprobe_uncharge(struct dmaprobe_session *s, unsigned long nr);

int dmaprobe_memory_index(struct dmaprobe_memory *mem, gfp_t gfp);
void dmaprobe_memory_free(struct dmaprobe_memory *mem);
bool dmaprobe_memory_find(const struct dmaprobe_memory *mem, phys_addr_t phys,
			  u64 expected, u64 *offset, u64 *length);
struct dmaprobe_memory *dmaprobe_memory_get(struct dmaprobe_ucmd *ucmd, u32 id);
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

struct dmaprobe_buffer *dmaprobe_buffer_get(struct dmaprobe_ucmd *ucmd, u32 id);

/* Accepts NULL and an ERR_PTR. */
static inline void dmaprobe_buffer_put(struct dmaprobe_buffer *buf)
{
	if (!IS_ERR_OR_NULL(buf))
		dmaprobe_object_put(&buf->mem.obj);
}

DEFINE_FREE(dmaprobe_buffer_put, struct dmaprobe_buffer *, dmaprobe_buffer_put(_T))

int dmaprobe_buffer_range(const struct dmaprobe_buffer *buf, u64 offset,
			  u64 length, u32 dir, phys_addr_t *phys);
struct dmaprobe_buffer *dmaprobe_buffer_new(struct dmaprobe_session *s,
					    unsigned long nr, unsigned long charge);
int dmaprobe_buffer_add(struct dmaprobe_ucmd *ucmd, struct dmaprobe_buffer *buf);
void dmaprobe_buffer_free(struct dmaprobe_session *s, struct dmaprobe_buffer *buf);

/* pin.c */
void dmaprobe_unpin(struct dmaprobe_session *s, struct dmaprobe_buffer *buf);

/* alloc.c */

/* How many dma-bufs, imports of them and mmap()s revoking an allocation has to undo. */
#define DMAPROBE_MAX_USERS	1024

/* The kernel allocates, zeroes and maps it at a stretch. */
#define DMAPROBE_ALLOC_MAX	SZ_256M

struct dmaprobe_allocation {
	struct dmaprobe_memory mem;

	/* Valid while the memory is there. */
	struct device *dev;
	void *cpu;		/* see kernel_address(); coherent memory: a cookie */
	struct sg_table *sgt;	/* noncontiguous memory */
	dma_addr_t addr;
	unsigned long attrs;
	u32 nr_pieces;		/* 0: the kernel does not know them */
	u8 kind;
	u8 dir;

	spinlock_t lock;	/* these */
	bool revoked;		/* the memory is gone, or about to go */
	unsigned int nr_views;
	unsigned int nr_imports;
	struct list_head views;
	struct delayed_work views_work;

	struct dma_resv resv;		/* of all its dma-bufs */
	struct mutex exports_lock;	/* outside of it */
	unsigned int nr_exports;
	struct list_head exports;
};

struct dmaprobe_allocation *dmaprobe_allocation_get(struct dmaprobe_ucmd *ucmd, u32 id);
void dmaprobe_allocation_sync(struct dmaprobe_allocation *a, u32 target, u64 offset, u64 length);

/* alloc_sgtable.c */
int dmaprobe_allocation_find_pages(struct dmaprobe_allocation *a, u32 *nr_pieces);

/* alloc_mmap.c */
void dmaprobe_look_at_views(struct work_struct *work);
int dmaprobe_allocation_mmap(struct dmaprobe_allocation *a,
			     struct vm_area_struct *vma, unsigned long first);
void dmaprobe_wait_for_mmaps(struct dmaprobe_allocation *a);

/* export.c, import.c */
extern const struct dma_buf_attach_ops dmaprobe_import_ops;
const struct dmaprobe_device *dmaprobe_import_device(const struct dma_buf_attachment *attach);
void dmaprobe_export_revoke(struct dmaprobe_allocation *a);
u32 dmaprobe_export_pieces(const struct dma_buf *dmabuf);

/* inode.c */
struct inode *dmaprobe_inode_new(void);
void dmaprobe_inode_put(struct inode *inode);

/* mapping.c */
int dmaprobe_check_reach(const struct dmaprobe_device *dd, phys_addr_t phys,
			 size_t length, u32 dir, u64 attrs);
int dmaprobe_bar_range(const struct dmaprobe_device *dd, u32 bar, u64 offset,
		       u64 length, phys_addr_t *phys);
int dmaprobe_reply_segments(struct dmaprobe_ucmd *ucmd, struct scatterlist *sgl,
			    unsigned int nents);
int dmaprobe_reply_segment(struct dmaprobe_ucmd *ucmd, dma_addr_t addr, size_t length);

/* device.c */
struct dmaprobe_device *dmaprobe_device_create(struct pci_dev *pdev);
void dmaprobe_device_unplug(struct dmaprobe_device *dd);
bool dmaprobe_group_is_shared(struct device *dev);

/* session.c */
extern const struct file_operations dmaprobe_fops;

/* limits.c */
void dmaprobe_limits_save(struct dmaprobe_device *dd);
void dmaprobe_limits_reset(struct dmaprobe_device *dd);
void dmaprobe_spare_put(struct dmaprobe_device *dd);

/* vfio.c */
void dmaprobe_disable(struct dmaprobe_session *s);
int dmaprobe_vfio_register(void);
void dmaprobe_vfio_unregister(void);

/* dispatch.c, uring.c */
int dmaprobe_dispatch(struct dmaprobe_ucmd *ucmd, unsigned int cmd);
void *dmaprobe_fetch_array(u64 from, size_t nr, size_t size);
int dmaprobe_reply_array(struct dmaprobe_ucmd *ucmd, u64 to, size_t nr, size_t size);
long dmaprobe_ioctl(struct file *file, unsigned int cmd, unsigned long arg);
int dmaprobe_uring_cmd(struct io_uring_cmd *ioucmd, unsigned int issue_flags);

/* The handlers, in the files of their objects. */
#define OP(_cmd, _name, ...) int dmaprobe_op_##_name(struct dmaprobe_ucmd *ucmd);
#include "ops.h"
#undef OP

static inline struct device *dmaprobe_dma_dev(const struct dmaprobe_session *s)
{
	return &s->dd->pdev->dev;
}

/* Whether an IOMMU translates for the DMA API, so that dma-iommu serves it. */
static inline bool dmaprobe_translates(const struct dmaprobe_device *dd)
{
	return dd->domain && (dd->domain->type & __IOMMU_DOMAIN_DMA_API);
}

/* The smallest unit the IOMMU maps. An identity domain may have no page sizes at all. */
static inline u64 dmaprobe_granule(const struct dmaprobe_device *dd)
{
	unsigned long sizes = dd->domain->pgsize_bitmap;

	return sizes ? 1ULL << __ffs(sizes) : PAGE_SIZE;
}

/* Whether the device takes so many bytes as one segment. Not all calls look themselves. */
static inline bool dmaprobe_one_segment(struct device *dev, u64 length)
{
	length = PAGE_ALIGN(length);
	return length <= dma_get_max_seg_size(dev) && length - 1 <= dma_get_seg_boundary(dev);
}

/* The values of enum dma_data_direction that a mapping can have. */
static inline bool dmaprobe_valid_dir(u32 dir)
{
	return dir <= DMAPROBE_DIR_FROM_DEVICE;
}

/*
 * Whether a call was cancelled: its process is being killed, or it runs in a ring's
 * worker, which is notified. The notifications of other threads do not count.
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

#endif /* DMAPROBE_PRIVATE_H */
