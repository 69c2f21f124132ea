// SPDX-License-Identifier: GPL-2.0-only
/*
 * The character device, its sessions, and the op table that every call of a user
 * goes through.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/pm_runtime.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

#define DMAPROBE_MAX_DEVICES	256

static dev_t dmaprobe_devt;
static DEFINE_IDA(dmaprobe_minors);

/* Memory on the stack for the struct of any op. */
union dmaprobe_cmd_buffer {
	struct dmaprobe_version version;
	struct dmaprobe_call call;
	struct dmaprobe_limits limits;
	struct dmaprobe_domain domain;
	struct dmaprobe_set_mask set_mask;
	struct dmaprobe_enable enable;
	struct dmaprobe_buffer_alloc buffer_alloc;
	struct dmaprobe_buffer_free buffer_free;
	struct dmaprobe_map map;
	struct dmaprobe_unmap unmap;
	struct dmaprobe_sync sync;
	struct dmaprobe_iova_alloc iova_alloc;
	struct dmaprobe_iova_free iova_free;
	struct dmaprobe_iova_link iova_link;
	struct dmaprobe_iova_sync iova_sync;
	struct dmaprobe_iova_unlink iova_unlink;
	struct dmaprobe_iova_destroy iova_destroy;
	struct dmaprobe_iova_state iova_state;
	struct dmaprobe_translate translate;
	struct dmaprobe_nop nop;
	struct dmaprobe_stats stats;
	struct dmaprobe_run run;
	struct dmaprobe_bench bench;
	struct dmaprobe_set_segments set_segments;
	struct dmaprobe_buffer_pin buffer_pin;
	struct dmaprobe_copy copy;
	struct dmaprobe_map_sg map_sg;
	struct dmaprobe_map_resource map_resource;
	struct dmaprobe_map_dmabuf map_dmabuf;
	struct dmaprobe_segments segments;
	struct dmaprobe_alloc alloc;
	struct dmaprobe_alloc_free alloc_free;
	struct dmaprobe_sgtable sgtable;
	struct dmaprobe_export export;
	struct dmaprobe_pool_create pool_create;
	struct dmaprobe_pool_destroy pool_destroy;
	struct dmaprobe_pool_alloc pool_alloc;
	struct dmaprobe_pool_free pool_free;
};

struct dmaprobe_op {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	u32 flags;		/* those that the op knows */
	bool exclusive;		/* runs alone on its device */
	int (*execute)(struct dmaprobe_ucmd *ucmd);
};

#define OP(_cmd, _fn, _struct, _last, ...)				\
	[_IOC_NR(_cmd)] = {						\
		.cmd = _cmd,						\
		.size = sizeof(struct _struct) +			\
			BUILD_BUG_ON_ZERO(sizeof(union dmaprobe_cmd_buffer) < \
					  sizeof(struct _struct)) +	\
			BUILD_BUG_ON_ZERO(offsetof(struct _struct, size) != 0) + \
			BUILD_BUG_ON_ZERO(offsetof(struct _struct, flags) != 4), \
		.min_size = offsetofend(struct _struct, _last),		\
		.execute = _fn,						\
		__VA_ARGS__						\
	}

static const struct dmaprobe_op dmaprobe_ops[] = {
	OP(DMAPROBE_VERSION, dmaprobe_op_version, dmaprobe_version, nr_calls),
	OP(DMAPROBE_CALL, dmaprobe_op_call, dmaprobe_call, detail),
	OP(DMAPROBE_LIMITS, dmaprobe_op_limits, dmaprobe_limits,
	   min_align_mask),
	OP(DMAPROBE_DOMAIN, dmaprobe_op_domain, dmaprobe_domain, driver),
	OP(DMAPROBE_SET_MASK, dmaprobe_op_set_mask, dmaprobe_set_mask, mask,
	   .flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT,
	   .exclusive = true),
	OP(DMAPROBE_ENABLE, dmaprobe_op_enable, dmaprobe_enable, __reserved),
	OP(DMAPROBE_BUFFER_ALLOC, dmaprobe_op_buffer_alloc,
	   dmaprobe_buffer_alloc, mmap_offset,
	   .flags = DMAPROBE_BUFFER_NODE),
	OP(DMAPROBE_BUFFER_FREE, dmaprobe_op_buffer_free, dmaprobe_buffer_free,
	   __reserved),
	OP(DMAPROBE_MAP, dmaprobe_op_map, dmaprobe_map, __reserved),
	OP(DMAPROBE_UNMAP, dmaprobe_op_unmap, dmaprobe_unmap, __reserved),
	OP(DMAPROBE_SYNC, dmaprobe_op_sync, dmaprobe_sync, length),
	OP(DMAPROBE_IOVA_ALLOC, dmaprobe_op_iova_alloc, dmaprobe_iova_alloc,
	   addr),
	OP(DMAPROBE_IOVA_FREE, dmaprobe_op_iova_free, dmaprobe_iova_free,
	   __reserved),
	OP(DMAPROBE_IOVA_LINK, dmaprobe_op_iova_link, dmaprobe_iova_link,
	   attrs),
	OP(DMAPROBE_IOVA_SYNC, dmaprobe_op_iova_sync, dmaprobe_iova_sync,
	   length),
	OP(DMAPROBE_IOVA_UNLINK, dmaprobe_op_iova_unlink, dmaprobe_iova_unlink,
	   attrs),
	OP(DMAPROBE_IOVA_DESTROY, dmaprobe_op_iova_destroy,
	   dmaprobe_iova_destroy, attrs),
	OP(DMAPROBE_IOVA_STATE, dmaprobe_op_iova_state, dmaprobe_iova_state,
	   bounced),
	OP(DMAPROBE_TRANSLATE, dmaprobe_op_translate, dmaprobe_translate,
	   translated, .flags = DMAPROBE_TRANSLATE_PHYS),
	OP(DMAPROBE_NOP, dmaprobe_op_nop, dmaprobe_nop, flags),
	OP(DMAPROBE_STATS, dmaprobe_op_stats, dmaprobe_stats, pinned),
	OP(DMAPROBE_RUN, dmaprobe_op_run, dmaprobe_run, ops,
	   .flags = DMAPROBE_RUN_CONTINUE),
	OP(DMAPROBE_BENCH, dmaprobe_op_bench, dmaprobe_bench, ns),
	OP(DMAPROBE_SET_SEGMENTS, dmaprobe_op_set_segments,
	   dmaprobe_set_segments, segment_boundary_mask,
	   .flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE |
		    DMAPROBE_SET_SEGMENTS_BOUNDARY |
		    DMAPROBE_SET_SEGMENTS_MIN_ALIGN,
	   .exclusive = true),
	OP(DMAPROBE_BUFFER_PIN, dmaprobe_op_buffer_pin, dmaprobe_buffer_pin,
	   __reserved, .flags = DMAPROBE_BUFFER_PIN_READ_ONLY),
	OP(DMAPROBE_COPY, dmaprobe_op_copy, dmaprobe_copy, addr),
	OP(DMAPROBE_MAP_SG, dmaprobe_op_map_sg, dmaprobe_map_sg, need_sync),
	OP(DMAPROBE_MAP_RESOURCE, dmaprobe_op_map_resource,
	   dmaprobe_map_resource, dma_addr),
	OP(DMAPROBE_MAP_DMABUF, dmaprobe_op_map_dmabuf, dmaprobe_map_dmabuf,
	   length),
	OP(DMAPROBE_SEGMENTS, dmaprobe_op_segments, dmaprobe_segments, segments),
	OP(DMAPROBE_ALLOC, dmaprobe_op_alloc, dmaprobe_alloc, mmap_offset),
	OP(DMAPROBE_ALLOC_FREE, dmaprobe_op_alloc_free, dmaprobe_alloc_free,
	   __reserved),
	OP(DMAPROBE_SGTABLE, dmaprobe_op_sgtable, dmaprobe_sgtable, entries,
	   .flags = DMAPROBE_SGTABLE_PHYS),
	OP(DMAPROBE_EXPORT, dmaprobe_op_export, dmaprobe_export, fd),
	OP(DMAPROBE_POOL_CREATE, dmaprobe_op_pool_create, dmaprobe_pool_create,
	   __reserved),
	OP(DMAPROBE_POOL_DESTROY, dmaprobe_op_pool_destroy,
	   dmaprobe_pool_destroy, __reserved),
	OP(DMAPROBE_POOL_ALLOC, dmaprobe_op_pool_alloc, dmaprobe_pool_alloc,
	   dma_addr),
	OP(DMAPROBE_POOL_FREE, dmaprobe_op_pool_free, dmaprobe_pool_free,
	   __reserved),
};

/**
 * dmaprobe_respond - write an op's struct back
 * @ucmd: the call
 *
 * Ops that create something respond before they publish it, so that a fault
 * leaves nothing behind.
 *
 * Return: 0 or -EFAULT
 */
int dmaprobe_respond(const struct dmaprobe_ucmd *ucmd)
{
	return copy_struct_to_user(ucmd->ubuffer, ucmd->user_size, ucmd->cmd,
				   ucmd->size, NULL);
}

static int execute(const struct dmaprobe_op *op, struct dmaprobe_ucmd *ucmd)
{
	if (!ucmd->session->dd->pdev)
		return -ENODEV;
	return op->execute(ucmd);
}

/* The one way from a front (ioctl is one) to a handler. */
static int dispatch(struct dmaprobe_session *s, unsigned int cmd,
		    void __user *ubuffer)
{
	struct dmaprobe_ucmd ucmd = { .session = s, .ubuffer = ubuffer };
	struct dmaprobe_device *dd = s->dd;
	union dmaprobe_cmd_buffer buf;
	const struct dmaprobe_op *op;
	unsigned int nr = _IOC_NR(cmd);
	int ret;

	if (nr >= ARRAY_SIZE(dmaprobe_ops))
		return -ENOTTY;
	op = &dmaprobe_ops[array_index_nospec(nr, ARRAY_SIZE(dmaprobe_ops))];
	if (op->cmd != cmd)
		return -ENOTTY;

	if (get_user(ucmd.user_size, (u32 __user *)ubuffer))
		return -EFAULT;
	if (ucmd.user_size < op->min_size)
		return -EINVAL;
	if (ucmd.user_size > PAGE_SIZE)
		return -E2BIG;
	ucmd.cmd = &buf;
	ucmd.size = op->size;
	ret = copy_struct_from_user(&buf, op->size, ubuffer, ucmd.user_size);
	if (ret)
		return ret;
	/* Every struct begins like this one. */
	if (buf.version.flags & ~op->flags)
		return -EOPNOTSUPP;

	if (op->exclusive) {
		guard(rwsem_write)(&dd->unplug_lock);
		return execute(op, &ucmd);
	}
	guard(rwsem_read)(&dd->unplug_lock);
	return execute(op, &ucmd);
}

static long dmaprobe_ioctl(struct file *file, unsigned int cmd,
			   unsigned long arg)
{
	return dispatch(file->private_data, cmd, (void __user *)arg);
}

/*
 * Give the device the limits it was bound with. Setting masks also lets the DMA core
 * find out what the device needs, so this is done at the start as well.
 */
static void reset_limits(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	dma_set_mask(dev, dd->bound_mask);
	dma_set_coherent_mask(dev, dd->bound_coherent_mask);
	dma_set_seg_boundary(dev, dd->bound_boundary);
	dma_set_max_seg_size(dev, dd->bound_max_segment);
	dma_set_min_align_mask(dev, dd->bound_min_align);
	dd->direct_max = dma_max_mapping_size(dev);
}

static int dmaprobe_open(struct inode *inode, struct file *file)
{
	struct dmaprobe_device *dd =
		container_of(inode->i_cdev, struct dmaprobe_device, cdev);
	struct dmaprobe_session *s;
	int ret;

	s = kzalloc_obj(*s, GFP_KERNEL_ACCOUNT);
	if (!s)
		return -ENOMEM;
	/* The file pins the cdev, and the cdev the device. */
	s->dd = dd;
	xa_init_flags(&s->objects, XA_FLAGS_ALLOC1);
	s->inode = dmaprobe_inode_new();
	if (IS_ERR(s->inode)) {
		ret = PTR_ERR(s->inode);
		goto err_free;
	}

	down_read(&dd->unplug_lock);
	if (!dd->pdev) {
		ret = -ENODEV;
		goto err_unlock;
	}
	/* vfio-pci-core lets a device that nobody uses sleep; not ours. */
	ret = pm_runtime_resume_and_get(&dd->pdev->dev);
	if (ret)
		goto err_unlock;
	if (!capable(CAP_IPC_LOCK))
		s->user = get_uid(current_user());

	mutex_lock(&dd->lock);
	list_add_tail(&s->node, &dd->sessions);
	mutex_unlock(&dd->lock);
	up_read(&dd->unplug_lock);

	file->private_data = s;
	file->f_mapping = s->inode->i_mapping;
	return 0;

err_unlock:
	up_read(&dd->unplug_lock);
	dmaprobe_inode_put(s->inode);
err_free:
	kfree(s);
	return ret;
}

/*
 * Undo all that a session did to its device: this, then session_release_memory().
 * The device stops before its memory goes away from under it.
 */
static void session_stop(struct dmaprobe_session *s)
{
	dmaprobe_mmio_disable(s);
	dmaprobe_objects_teardown(s, false);
}

static void session_release_memory(struct dmaprobe_session *s)
{
	dmaprobe_objects_teardown(s, true);
	pm_runtime_put(&s->dd->pdev->dev);
}

static int dmaprobe_release(struct inode *inode, struct file *file)
{
	struct dmaprobe_session *s = file->private_data;
	struct dmaprobe_device *dd = s->dd;

	scoped_guard(rwsem_read, &dd->unplug_lock) {
		/* Without a device, unplug has stopped the session. */
		if (dd->pdev) {
			session_stop(s);
			session_release_memory(s);
			guard(mutex)(&dd->lock);
			list_del(&s->node);
			if (list_empty(&dd->sessions))
				reset_limits(dd);
		}
	}

	if (s->user)
		free_uid(s->user);
	dmaprobe_inode_put(s->inode);
	kfree(s);
	return 0;
}

static const struct file_operations dmaprobe_fops = {
	.owner = THIS_MODULE,
	.open = dmaprobe_open,
	.release = dmaprobe_release,
	.unlocked_ioctl = dmaprobe_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = dmaprobe_mmap,
};

/* The node's mode is left at the default: root's alone, 0600. */
static char *dmaprobe_devnode(const struct device *dev, umode_t *mode)
{
	return kasprintf(GFP_KERNEL, "dmaprobe/%s", dev_name(dev));
}

static void dmaprobe_device_free(struct device *dev)
{
	struct dmaprobe_device *dd =
		container_of(dev, struct dmaprobe_device, dev);

	ida_free(&dmaprobe_minors, MINOR(dd->dev.devt));
	mutex_destroy(&dd->lock);
	kfree(dd);
}

static struct class dmaprobe_class = {
	.name = "dmaprobe",
	.devnode = dmaprobe_devnode,
	.dev_release = dmaprobe_device_free,
};

/**
 * dmaprobe_device_create - make the character device of a PCI device
 * @pdev: the PCI device, being probed
 *
 * Return: the device, not yet visible, or an ERR_PTR()
 */
struct dmaprobe_device *dmaprobe_device_create(struct pci_dev *pdev)
{
	struct dmaprobe_device *dd;
	int minor, ret;

	dd = kzalloc_obj(*dd, GFP_KERNEL);
	if (!dd)
		return ERR_PTR(-ENOMEM);
	minor = ida_alloc_max(&dmaprobe_minors, DMAPROBE_MAX_DEVICES - 1,
			      GFP_KERNEL);
	if (minor < 0) {
		kfree(dd);
		return ERR_PTR(minor);
	}

	init_rwsem(&dd->unplug_lock);
	mutex_init(&dd->lock);
	INIT_LIST_HEAD(&dd->sessions);
	dd->pdev = pdev;
	dd->domain = iommu_get_domain_for_dev(&pdev->dev);
	dd->bound_mask = dma_get_mask(&pdev->dev);
	dd->bound_coherent_mask = pdev->dev.coherent_dma_mask;
	dd->bound_boundary = dma_get_seg_boundary(&pdev->dev);
	dd->bound_max_segment = dma_get_max_seg_size(&pdev->dev);
	dd->bound_min_align = dma_get_min_align_mask(&pdev->dev);
	reset_limits(dd);

	device_initialize(&dd->dev);
	dd->dev.class = &dmaprobe_class;
	dd->dev.parent = &pdev->dev;
	dd->dev.devt = MKDEV(MAJOR(dmaprobe_devt), minor);
	cdev_init(&dd->cdev, &dmaprobe_fops);
	dd->cdev.owner = THIS_MODULE;

	ret = dev_set_name(&dd->dev, "%s", pci_name(pdev));
	if (ret) {
		put_device(&dd->dev);
		return ERR_PTR(ret);
	}
	return dd;
}

/**
 * dmaprobe_device_add - let users open the device
 * @dd: the device
 *
 * Return: 0 or a negative errno
 */
int dmaprobe_device_add(struct dmaprobe_device *dd)
{
	return cdev_device_add(&dd->cdev, &dd->dev);
}

/**
 * dmaprobe_device_unplug - take the PCI device away from its sessions
 * @dd: the device; visible
 *
 * Waits for the calls in flight. All that sessions hold is torn down; from then
 * on every call answers ENODEV.
 */
void dmaprobe_device_unplug(struct dmaprobe_device *dd)
{
	struct dmaprobe_session *s, *next;

	cdev_device_del(&dd->cdev, &dd->dev);

	guard(rwsem_write)(&dd->unplug_lock);
	/* One session's memory may be what another has mapped: a dma-buf. */
	list_for_each_entry(s, &dd->sessions, node)
		session_stop(s);
	list_for_each_entry_safe(s, next, &dd->sessions, node) {
		session_release_memory(s);
		list_del(&s->node);
	}
	reset_limits(dd);
	WRITE_ONCE(dd->pdev, NULL);
	dd->domain = NULL;
}

/**
 * dmaprobe_device_put - give back the reference of dmaprobe_device_create()
 * @dd: the device
 */
void dmaprobe_device_put(struct dmaprobe_device *dd)
{
	put_device(&dd->dev);
}

static int __init dmaprobe_init(void)
{
	int ret;

	ret = alloc_chrdev_region(&dmaprobe_devt, 0, DMAPROBE_MAX_DEVICES,
				  "dmaprobe");
	if (ret)
		return ret;
	ret = class_register(&dmaprobe_class);
	if (ret)
		goto err_chrdev;
	ret = dmaprobe_vfio_register();
	if (ret)
		goto err_class;
	return 0;

err_class:
	class_unregister(&dmaprobe_class);
err_chrdev:
	unregister_chrdev_region(dmaprobe_devt, DMAPROBE_MAX_DEVICES);
	return ret;
}

static void __exit dmaprobe_exit(void)
{
	dmaprobe_vfio_unregister();
	class_unregister(&dmaprobe_class);
	unregister_chrdev_region(dmaprobe_devt, DMAPROBE_MAX_DEVICES);
	ida_destroy(&dmaprobe_minors);
}

module_init(dmaprobe_init);
module_exit(dmaprobe_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Drive the DMA-mapping API from user space");
MODULE_AUTHOR("dmaprobe developers");
