// SPDX-License-Identifier: GPL-2.0-only
/*
 * The common part of everything made of pages: charging, finding a physical address in
 * it, mmap(), DMAPROBE_COPY.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/overflow.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

static unsigned int session_max_mib = 1024;
module_param(session_max_mib, uint, 0644);
MODULE_PARM_DESC(session_max_mib, "Memory a session may allocate or pin, in MiB");
static unsigned int device_max_mib = 1024;
module_param(device_max_mib, uint, 0644);
MODULE_PARM_DESC(device_max_mib, "The same of all sessions without CAP_IPC_LOCK of a device");

#define mib_limit(parameter)	((unsigned long)READ_ONCE(parameter) << (20 - PAGE_SHIFT))

/* mmap offset: the id above, the offset in the object in the lower 32 bits. */
#define MMAP_ID_SHIFT		32

/* Count up to a limit: never above it, not for a moment, in which others would be refused. */
bool dmaprobe_count_below(atomic_long_t *count, unsigned long nr, unsigned long limit)
{
	long old = atomic_long_read(count);

	do {
		if (nr > limit || (unsigned long)old > limit - nr)
			return false;
	} while (!atomic_long_try_cmpxchg(count, &old, old + nr));
	return true;
}

/*
 * Charge memory to a session, before it is allocated.
 *
 * The session's own limit holds for everybody; without CAP_IPC_LOCK at open() so do RLIMIT_MEMLOCK
 * and, last since all share it, device_max_mib. Returns 0, or -ENOMEM.
 */
int dmaprobe_charge(struct dmaprobe_session *s, unsigned long nr)
{
	if (!dmaprobe_count_below(&s->nr_pages, nr, mib_limit(session_max_mib)))
		return -ENOMEM;
	if (!s->user)
		return 0;
	if (dmaprobe_count_below(&s->user->locked_vm, nr, rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT)) {
		if (dmaprobe_count_below(&s->dd->nr_pages, nr, mib_limit(device_max_mib)))
			return 0;
		atomic_long_sub(nr, &s->user->locked_vm);
	}
	atomic_long_sub(nr, &s->nr_pages);
	return -ENOMEM;
}

/* Undo dmaprobe_charge(). */
void dmaprobe_uncharge(struct dmaprobe_session *s, unsigned long nr)
{
	if (s->user) {
		atomic_long_sub(nr, &s->user->locked_vm);
		atomic_long_sub(nr, &s->dd->nr_pages);
	}
	atomic_long_sub(nr, &s->nr_pages);
}

static unsigned long mem_pfn(const struct dmaprobe_memory *mem, unsigned long i)
{
	return page_to_pfn(mem->pages[i]);
}

/* Equal pages by their place, so that the first one is found first. */
static int cmp_index(const void *a, const void *b, const void *priv)
{
	const struct dmaprobe_memory *mem = priv;
	u32 ia = *(const u32 *)a, ib = *(const u32 *)b;
	unsigned long pa = mem_pfn(mem, ia), pb = mem_pfn(mem, ib);

	if (pa != pb)
		return pa < pb ? -1 : 1;
	return ia < ib ? -1 : ia > ib;
}

/* Prepare lookup by physical address. Returns 0, or -ENOMEM. */
int dmaprobe_memory_index(struct dmaprobe_memory *mem, gfp_t gfp)
{
	unsigned long i;

	for (i = 1; i < mem->nr_pages; i++)
		if (mem_pfn(mem, i) != mem_pfn(mem, 0) + i)
			break;
	if (i >= mem->nr_pages)
		return 0;

	mem->by_pfn = kvmalloc_array(mem->nr_pages, sizeof(*mem->by_pfn), gfp);
	if (!mem->by_pfn)
		return -ENOMEM;
	for (i = 0; i < mem->nr_pages; i++)
		mem->by_pfn[i] = i;
	sort_r_nonatomic(mem->by_pfn, mem->nr_pages, sizeof(*mem->by_pfn), cmp_index, NULL, mem);
	return 0;
}

/* Free the arrays of an object with pages; the pages are its owner's to free. */
void dmaprobe_memory_free(struct dmaprobe_memory *mem)
{
	kvfree(mem->by_pfn);
	kvfree(mem->pages);
}

/* Whether a physical address is in page @i of the memory, and at what offset. */
static bool find_at(const struct dmaprobe_memory *mem, unsigned long i,
		    phys_addr_t phys, u64 *offset)
{
	u64 at;

	if (i >= mem->nr_pages || mem_pfn(mem, i) != PHYS_PFN(phys))
		return false;
	at = ((u64)i << PAGE_SHIFT) + offset_in_page(phys);
	if (at < mem->first_offset || at - mem->first_offset >= mem->length)
		return false;
	*offset = at - mem->first_offset;
	return true;
}

/* The position in by_pfn[] of the first page that is not below @pfn. */
static unsigned long lower_bound(const struct dmaprobe_memory *mem, unsigned long pfn)
{
	unsigned long low = 0, high = mem->nr_pages;

	while (low < high) {
		unsigned long mid = low + (high - low) / 2;

		if (mem_pfn(mem, mem->by_pfn[mid]) < pfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool memory_find(const struct dmaprobe_memory *mem, phys_addr_t phys,
			u64 expected, u64 *offset)
{
	unsigned long pfn = PHYS_PFN(phys), i;

	if (expected < mem->length &&
	    find_at(mem, (mem->first_offset + expected) >> PAGE_SHIFT, phys, offset))
		return true;
	if (!mem->by_pfn)
		return find_at(mem, pfn - mem_pfn(mem, 0), phys, offset);

	/* A page that is there more than once need not be whole each time. */
	for (i = lower_bound(mem, pfn); i < mem->nr_pages; i++) {
		if (mem_pfn(mem, mem->by_pfn[i]) != pfn)
			break;
		if (find_at(mem, mem->by_pfn[i], phys, offset))
			return true;
	}
	return false;
}

/**
 * dmaprobe_memory_find - find a physical address in an object with pages
 * @mem: the memory
 * @phys: the physical address
 * @expected: the offset where it probably is: looked at first, at once
 * @offset: out: where it is in the object
 * @length: in: bytes of interest from @phys on, inside its page; out: those of
 *	them for which the answer holds
 *
 * Return: whether it is there
 */
bool dmaprobe_memory_find(const struct dmaprobe_memory *mem, phys_addr_t phys,
			  u64 expected, u64 *offset, u64 *length)
{
	if (!mem->pages || !mem->nr_pages)
		return false;
	if (memory_find(mem, phys, expected, offset)) {
		*length = min(*length, mem->length - *offset);
		return true;
	}
	/* The object may begin behind it, in the same page. */
	if (mem_pfn(mem, 0) == PHYS_PFN(phys) && offset_in_page(phys) < mem->first_offset)
		*length = min(*length, mem->first_offset - offset_in_page(phys));
	return false;
}

/* Look an object with pages up and hold it. */
struct dmaprobe_memory *dmaprobe_memory_get(struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_object *obj;

	id = dmaprobe_resolve_id(ucmd, id);
	guard(rcu)();
	obj = xa_load(&ucmd->session->objects, id);
	if (!obj || !obj->type->has_pages || !dmaprobe_object_tryget(obj))
		return ERR_PTR(-ENOENT);
	return container_of(obj, struct dmaprobe_memory, obj);
}

/* What to give to mmap() for an object: the offset of its first page. */
u64 dmaprobe_mmap_offset(u32 id)
{
	return (u64)id << MMAP_ID_SHIFT;
}

int dmaprobe_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dmaprobe_session *s = file->private_data;
	unsigned long first = vma->vm_pgoff & (BIT(MMAP_ID_SHIFT - PAGE_SHIFT) - 1);
	struct dmaprobe_ucmd lookup = { .session = s };
	struct dmaprobe_memory *mem;
	int ret;

	if (READ_ONCE(s->dd->unplugged))
		return -ENODEV;
	/* A private mapping would show the device's writes only by half. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;

	/* Without the group's lock: only of memory may the last reference be put like this. */
	mem = dmaprobe_memory_get(&lookup, vma->vm_pgoff >> (MMAP_ID_SHIFT - PAGE_SHIFT));
	if (IS_ERR(mem))
		return PTR_ERR(mem);
	ret = mem->obj.type->mmap(&mem->obj, vma, first);
	dmaprobe_object_put(&mem->obj);
	return ret;
}

/* Move the bytes of a part of a copy whose range was checked. */
void dmaprobe_copy_part(const struct dmaprobe_copy *cmd,
			const struct dmaprobe_copy_part *part, void *kernel)
{
	if (cmd->dir == DMAPROBE_COPY_READ)
		memcpy(part->data, kernel, part->length);
	else
		memcpy(kernel, part->data, part->length);
}

static int copy_part(struct dmaprobe_ucmd *ucmd, const struct dmaprobe_copy_part *part)
{
	const struct dmaprobe_copy *cmd = ucmd->cmd;
	struct dmaprobe_object *obj;
	int ret = -ENOENT;

	guard(rwsem_read)(&ucmd->session->dd->group->lock);
	if (ucmd->session->dd->unplugged)
		return -ENODEV;
	obj = dmaprobe_object_get(ucmd, cmd->id, NULL);
	if (IS_ERR(obj))
		return PTR_ERR(obj);
	if (obj->type->copy)
		ret = obj->type->copy(obj, cmd, part);
	dmaprobe_object_put(obj);
	return ret;
}

int dmaprobe_op_copy(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_copy *cmd = ucmd->cmd;
	void __user *user = u64_to_user_ptr(cmd->addr);
	u64 end;

	if (cmd->dir > DMAPROBE_COPY_WRITE || !cmd->length ||
	    check_add_overflow(cmd->offset, cmd->length, &end))
		return -EINVAL;
	if (!access_ok(u64_to_user_ptr(cmd->addr), cmd->length))
		return -EFAULT;

	void *data __free(kfree) = kmalloc(min(cmd->length, PAGE_SIZE), GFP_KERNEL_ACCOUNT);
	if (!data)
		return -ENOMEM;

	for (u64 at = cmd->offset; at < end;) {
		struct dmaprobe_copy_part part = {
			.offset = at,
			.length = min(end - at, PAGE_SIZE - offset_in_page(at)),
			.data = data,
		};
		int ret;

		if (dmaprobe_cancelled())
			return -EINTR;
		cond_resched();
		if (cmd->dir == DMAPROBE_COPY_WRITE && copy_from_user(data, user, part.length))
			return -EFAULT;
		ret = copy_part(ucmd, &part);
		if (ret)
			return ret;
		if (cmd->dir == DMAPROBE_COPY_READ && copy_to_user(user, data, part.length))
			return -EFAULT;
		at += part.length;
		user += part.length;
	}
	return 0;
}
